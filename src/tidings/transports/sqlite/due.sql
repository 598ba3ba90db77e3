-- When something parked of a group is next due; suspects apart, for each has a stretch of the index of its own.
SELECT
    (SELECT min(due) FROM parked WHERE grp = :grp AND suspect = 0 AND member IS NULL),
    (SELECT min(due) FROM parked WHERE grp = :grp AND suspect = 1 AND member IS NULL)
