-- Groups that have something parked to hand out now, or slots that nobody has.
SELECT id FROM grp WHERE
    EXISTS (SELECT 1 FROM parked WHERE grp = grp.id AND suspect = 0 AND member IS NULL AND due <= :now)
    OR EXISTS (SELECT 1 FROM parked WHERE grp = grp.id AND suspect = 1 AND member IS NULL AND due <= :now)
    OR EXISTS (SELECT 1 FROM slot WHERE grp = grp.id AND member IS NULL)
