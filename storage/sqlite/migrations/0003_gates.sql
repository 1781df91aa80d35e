-- Gates: kind 1 queue, 2 flow-control key, 3 crowd, as in relay/domain/gates.py. A queue without a name was deleted while it
-- still had messages; the row goes with the last of them. `opens_at` is the earliest instant at which somebody
-- could pass, NULL while only a change can bring it: a closed gate is in no index that anybody looks at.
CREATE TABLE gates (
    id INTEGER PRIMARY KEY,
    tenant INTEGER NOT NULL,
    kind INTEGER NOT NULL CHECK (kind IN (1, 2, 3)),
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
CREATE INDEX gates_opening ON gates (opens_at) WHERE opens_at IS NOT NULL;
CREATE INDEX gates_unused ON gates (used_at)
    WHERE kind > 1 AND members = 0 AND paused = 0 AND parallelism_pinned = 0 AND rate_pinned = 0;
CREATE INDEX gates_deleted ON gates (id) WHERE name IS NULL;

-- What a delivery that has a queue or a key, or was set aside in a crowd, needs besides its row in `deliveries`, which has no due time
-- while it waits here. `seq` is its place in the queue, for good; `eligible_at` when it is due as far as time goes.
-- `waits_at` is the gate it waits at and `place` its place there, both NULL once it may be attempted.
-- `callbacks` of a message in a queue are unfinished; once it is `finished` itself, its row keeps the lane for them.
CREATE TABLE gated (
    tenant INTEGER NOT NULL,
    id INTEGER NOT NULL,
    queue INTEGER,
    flow INTEGER,
    crowd INTEGER,
    seq INTEGER NOT NULL,
    eligible_at INTEGER NOT NULL,
    waits_at INTEGER,
    place INTEGER,
    callbacks INTEGER NOT NULL CHECK (callbacks >= 0),
    has_slot INTEGER NOT NULL CHECK (has_slot IN (0, 1)),
    finished INTEGER NOT NULL CHECK (finished IN (0, 1)),
    PRIMARY KEY (tenant, id),
    CHECK (queue IS NOT NULL OR flow IS NOT NULL OR crowd IS NOT NULL),
    CHECK (crowd IS NULL OR (crowd = waits_at AND flow IS NULL)),
    CHECK ((waits_at IS NULL) = (place IS NULL)),
    CHECK (has_slot = 0 OR queue IS NOT NULL),
    CHECK (finished = 0 OR (has_slot = 1 AND callbacks > 0 AND flow IS NULL AND waits_at IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX gated_waiting ON gated (waits_at, place) WHERE waits_at IS NOT NULL;
CREATE INDEX gated_lanes ON gated (queue) WHERE has_slot = 1;
