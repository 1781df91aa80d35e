-- Gates of kind 4: a tenant that may have only so many deliveries in flight. `gated.owner` names it, for those that have
-- one of its permits, and for those that wait at it for one.
ALTER TABLE gates DROP CONSTRAINT gates_kind_check;
ALTER TABLE gates ADD CONSTRAINT gates_kind_check CHECK (kind IN (1, 2, 3, 4));
ALTER TABLE gated ADD COLUMN owner bigint;
ALTER TABLE gated DROP CONSTRAINT gated_check;
ALTER TABLE gated ADD CONSTRAINT gated_check
    CHECK (queue IS NOT NULL OR flow IS NOT NULL OR crowd IS NOT NULL OR owner IS NOT NULL);
ALTER TABLE gated ADD CONSTRAINT gated_owner_check
    CHECK (owner IS NULL OR (crowd IS NULL AND finished = 0 AND (waits_at IS NULL OR waits_at = owner)));
