-- How deliveries of a tenant are signed when their message does not say.
ALTER TABLE tenants ADD COLUMN signed_by TEXT NOT NULL DEFAULT 'qstash'
    CHECK (signed_by IN ('qstash', 'standard', 'both'));
