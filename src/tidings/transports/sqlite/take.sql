-- Hand out parked messages that are due (:suspects of those whose last holder died): of a group, to a member.
UPDATE parked SET member = :member, take = take + 1 WHERE grp = :grp AND seq IN (
    SELECT seq FROM (
        SELECT seq FROM parked
        WHERE grp = :grp AND suspect = 0 AND member IS NULL AND due <= :now ORDER BY due, seq LIMIT :limit)
    UNION ALL
    SELECT seq FROM (
        SELECT seq FROM parked
        WHERE grp = :grp AND suspect = 1 AND member IS NULL AND due <= :now ORDER BY due, seq LIMIT :suspects))
RETURNING seq, take, failures, crashes, suspect
