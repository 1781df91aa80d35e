-- Gates: kind 1 queue, 2 flow-control key, as in relay/domain/gates.py. A queue without a name was deleted while it
-- still had messages; the row goes with the last of them. `opens_at` is the earliest instant at which somebody
-- could pass, NULL while only a change can bring it: a closed gate is in no index that anybody looks at.
CREATE TABLE gates (
    id bigint PRIMARY KEY,
    tenant bigint NOT NULL,
    kind bigint NOT NULL CHECK (kind IN (1, 2)),
    name text,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    used_at bigint NOT NULL,
    parallelism bigint CHECK (parallelism > 0),
    rate bigint CHECK (rate > 0),
    period_ms bigint NOT NULL CHECK (period_ms > 0),
    paused bigint NOT NULL CHECK (paused IN (0, 1)),
    parallelism_pinned bigint NOT NULL CHECK (parallelism_pinned IN (0, 1)),
    rate_pinned bigint NOT NULL CHECK (rate_pinned IN (0, 1)),
    held bigint NOT NULL CHECK (held BETWEEN 0 AND members),
    window_at bigint,
    window_count bigint NOT NULL CHECK (window_count >= 0),
    members bigint NOT NULL CHECK (members >= 0),
    accepted bigint NOT NULL CHECK (accepted >= members),
    opens_at bigint,
    UNIQUE (tenant, kind, name),
    CHECK (opens_at IS NULL OR paused = 0)
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
    has_slot bigint NOT NULL CHECK (has_slot IN (0, 1)),
    PRIMARY KEY (tenant, id),
    CHECK (queue IS NOT NULL OR flow IS NOT NULL),
    CHECK ((waits_at IS NULL) = (place IS NULL)),
    CHECK (has_slot = 0 OR queue IS NOT NULL)
);
CREATE INDEX gated_waiting ON gated (waits_at, place, tenant, id) WHERE waits_at IS NOT NULL;
CREATE INDEX gated_lanes ON gated (queue) WHERE has_slot = 1;
-- The attempts of keys in flight: where those are found whose lease ran out.
CREATE INDEX gated_flying ON gated (tenant, id) WHERE flow IS NOT NULL AND waits_at IS NULL;
