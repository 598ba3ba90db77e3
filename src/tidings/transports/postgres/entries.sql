-- What is called from outside runs with its owner's rights, on this schema: others need no more than USAGE of it.
DO $$
DECLARE f regprocedure;
BEGIN
    FOR f IN SELECT oid FROM pg_proc WHERE pronamespace = current_schema()::regnamespace AND proname IN (
        'channels', 'move', 'apply', 'acked', 'claim', 'claim_ordered', 'mark', 'give_back', 'resync', 'enter', 'appear', 'beat', 'expire',
        'look', 'news', 'register', 'quit', 'depart', 'unanswered', 'tick', 'rename', 'drop_group', 'seek', 'retain', 'groups_info',
        'topics_info', 'holder', 'send', 'enlist', 'signal', 'live', 'patterns', 'names', 'fields')
    LOOP
        EXECUTE format('ALTER FUNCTION %s SECURITY DEFINER SET search_path = %I, pg_catalog, pg_temp', f, current_schema());
    END LOOP;
END $$;
