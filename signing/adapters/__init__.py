"""One line of verification for web frameworks: a module for each, which alone imports it.

What they have in common. Keys are those of `Verifier`: none at all means the two in the environment. A request
that is not genuine is answered 401 with `{"error": "..."}`, one whose body is larger than `max_body_bytes` 413,
and the handler is not called. A genuine one reaches it with the raw body still there to read.

`url` has the signed destination checked too, so that what was sent to another endpoint with the same keys is
refused. It is the URL that was published to, query included; behind a proxy the request only knows another one, so
it is never guessed. Where it is not the same for all requests, give a function that makes it from the framework's
request. Only `Upstash-Signature` states it: with `url`, Standard Webhooks alone is refused.

Nothing in front of the adapter may read, decompress or parse the body.
"""
