-- Gates: kind 1 queue, 2 flow-control key, as in relay/domain/gates.py; columns and meanings are those of the SQLite
-- schema. A queue without a name was deleted while it still had messages; the row goes with the last of them.
-- `opens_at` is the earliest instant at which somebody could pass, NULL while only a change can bring it: a closed
-- gate is in no index that anybody looks at. Names are in the order of their bytes, as everywhere else.
-- Few rows that change with every message: vacuum comes early and at full speed.
CREATE TABLE gates (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    tenant bigint NOT NULL,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    used_at bigint NOT NULL,
    parallelism bigint CHECK (parallelism > 0),
    rate bigint CHECK (rate > 0),
    period_ms bigint NOT NULL CHECK (period_ms > 0),
    held bigint NOT NULL CHECK (held BETWEEN 0 AND members),
    window_at bigint,
    window_count bigint NOT NULL CHECK (window_count >= 0),
    members bigint NOT NULL CHECK (members >= 0),
    accepted bigint NOT NULL CHECK (accepted >= members),
    opens_at bigint,
    kind smallint NOT NULL CHECK (kind IN (1, 2)),
    paused smallint NOT NULL CHECK (paused IN (0, 1)),
    parallelism_pinned smallint NOT NULL CHECK (parallelism_pinned IN (0, 1)),
    rate_pinned smallint NOT NULL CHECK (rate_pinned IN (0, 1)),
    name text COLLATE "C",
    UNIQUE (tenant, kind, name),
    CHECK (opens_at IS NULL OR paused = 0)
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_index_cleanup = on,
    vacuum_truncate = off
);
CREATE INDEX gates_opening ON gates (opens_at) WHERE opens_at IS NOT NULL;
CREATE INDEX gates_unused ON gates (used_at)
    WHERE kind = 2 AND members = 0 AND paused = 0 AND parallelism_pinned = 0 AND rate_pinned = 0;
CREATE INDEX gates_deleted ON gates (id) WHERE name IS NULL;

-- What the delivery of a message with a queue or a key needs besides its row in `deliveries`, which has no due time
-- while it waits here. `seq` is its place in the queue, for good; `eligible_at` when it is due as far as time goes.
-- `waits_at` is the gate it waits at and `place` its place there, both NULL once it may be attempted.
CREATE TABLE gated (
    tenant bigint NOT NULL,
    id bigint NOT NULL,
    queue bigint,
    flow bigint,
    seq bigint NOT NULL,
    eligible_at bigint NOT NULL,
    waits_at bigint,
    place bigint,
    has_slot smallint NOT NULL CHECK (has_slot IN (0, 1)),
    PRIMARY KEY (tenant, id),
    CHECK (queue IS NOT NULL OR flow IS NOT NULL),
    CHECK ((waits_at IS NULL) = (place IS NULL)),
    CHECK (has_slot = 0 OR queue IS NOT NULL)
) WITH (
    fillfactor = 90,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_index_cleanup = on,
    vacuum_truncate = off
);
CREATE INDEX gated_waiting ON gated (waits_at, place, tenant, id) WHERE waits_at IS NOT NULL;
CREATE INDEX gated_lanes ON gated (queue) WHERE has_slot = 1;
