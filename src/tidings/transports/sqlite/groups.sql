-- What is said of a group beside its backlog: numbers handed out, parked and held, members, dead letters.
SELECT name, app,
    (SELECT count(*) FROM parked WHERE grp = :grp AND member IS NOT NULL),
    (SELECT count(*) FROM parked WHERE grp = :grp AND member IS NULL),
    (SELECT min(seq) FROM parked WHERE grp = :grp),
    (SELECT count(*) FROM dead JOIN channel ON channel.id = dead.channel WHERE topic = '_dead.' || name),
    (SELECT count(*) FROM part WHERE grp = :grp)
FROM grp WHERE id = :grp
