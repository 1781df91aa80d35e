-- Endpoints (url, name) and headers are JSON: a group is read and written as a whole.
CREATE TABLE url_groups (
    tenant bigint NOT NULL,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    name text NOT NULL,
    endpoints text NOT NULL CHECK (endpoints <> '[]'),
    headers text NOT NULL,
    PRIMARY KEY (tenant, name)
);
