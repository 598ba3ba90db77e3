DELETE FROM pattern WHERE grp = :grp;
DELETE FROM cursor WHERE grp = :grp;
DELETE FROM slot WHERE grp = :grp;
DELETE FROM claim WHERE grp = :grp;
DELETE FROM parked WHERE grp = :grp;
DELETE FROM part WHERE grp = :grp;
DELETE FROM grp WHERE id = :grp;
