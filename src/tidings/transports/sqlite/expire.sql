-- A lost member leaves: a mark it left is one crash, all it held is suspect, its slots and places are free.
UPDATE parked SET crashes = crashes + running, running = 0, suspect = 1, member = NULL WHERE member = :member;
DELETE FROM claim WHERE member = :member;
UPDATE slot SET member = NULL WHERE member = :member;
DELETE FROM part WHERE member = :member;
DELETE FROM member WHERE id = :member;
