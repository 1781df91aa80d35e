-- Gates of kind 4: a tenant that may have only so many deliveries in flight. `gated.owner` names it, for those that have
-- one of its permits, and for those that wait at it for one. Both tables are as they were but for that: what a CHECK
-- says can only be changed by making the table anew.
ALTER TABLE gates RENAME TO gates_before;
DROP INDEX gates_opening;
DROP INDEX gates_unused;
DROP INDEX gates_deleted;
CREATE TABLE gates (
    id INTEGER PRIMARY KEY,
    tenant INTEGER NOT NULL,
    kind INTEGER NOT NULL CHECK (kind IN (1, 2, 3, 4)),
    name TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    used_at INTEGER NOT NULL,
    parallelism INTEGER CHECK (parallelism > 0),
    rate INTEGER CHECK (rate > 0),
    period_ms INTEGER NOT NULL CHECK (period_ms > 0),
    paused INTEGER NOT NULL CHECK (paused IN (0, 1)),
    parallelism_pinned INTEGER NOT NULL CHECK (parallelism_pinned IN (0, 1)),
    rate_pinned INTEGER NOT NULL CHECK (rate_pinned IN (0, 1)),
    held INTEGER NOT NULL CHECK (held BETWEEN 0 AND members),
    window_at INTEGER,
    window_count INTEGER NOT NULL CHECK (window_count >= 0),
    members INTEGER NOT NULL CHECK (members >= 0),
    accepted INTEGER NOT NULL CHECK (accepted >= members),
    opens_at INTEGER,
    UNIQUE (tenant, kind, name),
    CHECK (opens_at IS NULL OR paused = 0)
) STRICT;
INSERT INTO gates (id, tenant, kind, name, created_at, updated_at, used_at, parallelism, rate, period_ms, paused,
        parallelism_pinned, rate_pinned, held, window_at, window_count, members, accepted, opens_at)
    SELECT id, tenant, kind, name, created_at, updated_at, used_at, parallelism, rate, period_ms, paused,
        parallelism_pinned, rate_pinned, held, window_at, window_count, members, accepted, opens_at
    FROM gates_before;
DROP TABLE gates_before;
CREATE INDEX gates_opening ON gates (opens_at) WHERE opens_at IS NOT NULL;
CREATE INDEX gates_unused ON gates (used_at)
    WHERE kind > 1 AND members = 0 AND paused = 0 AND parallelism_pinned = 0 AND rate_pinned = 0;
CREATE INDEX gates_deleted ON gates (id) WHERE name IS NULL;

ALTER TABLE gated RENAME TO gated_before;
DROP INDEX gated_waiting;
DROP INDEX gated_lanes;
CREATE TABLE gated (
    tenant INTEGER NOT NULL,
    id INTEGER NOT NULL,
    queue INTEGER,
    flow INTEGER,
    crowd INTEGER,
    owner INTEGER,
    seq INTEGER NOT NULL,
    eligible_at INTEGER NOT NULL,
    waits_at INTEGER,
    place INTEGER,
    callbacks INTEGER NOT NULL CHECK (callbacks >= 0),
    has_slot INTEGER NOT NULL CHECK (has_slot IN (0, 1)),
    finished INTEGER NOT NULL CHECK (finished IN (0, 1)),
    PRIMARY KEY (tenant, id),
    CHECK (queue IS NOT NULL OR flow IS NOT NULL OR crowd IS NOT NULL OR owner IS NOT NULL),
    CHECK (crowd IS NULL OR (crowd = waits_at AND flow IS NULL)),
    CHECK ((waits_at IS NULL) = (place IS NULL)),
    CHECK (has_slot = 0 OR queue IS NOT NULL),
    CHECK (finished = 0 OR (has_slot = 1 AND callbacks > 0 AND flow IS NULL AND waits_at IS NULL)),
    CHECK (owner IS NULL OR (crowd IS NULL AND finished = 0 AND (waits_at IS NULL OR waits_at = owner)))
) STRICT, WITHOUT ROWID;
INSERT INTO gated (tenant, id, queue, flow, crowd, seq, eligible_at, waits_at, place, callbacks, has_slot, finished)
    SELECT tenant, id, queue, flow, crowd, seq, eligible_at, waits_at, place, callbacks, has_slot, finished
    FROM gated_before;
DROP TABLE gated_before;
CREATE INDEX gated_waiting ON gated (waits_at, place) WHERE waits_at IS NOT NULL;
CREATE INDEX gated_lanes ON gated (queue) WHERE has_slot = 1;
