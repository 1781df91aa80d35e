"""`python -m relay`: the `relay` command where it is not on the path."""

from relay.cli import main

raise SystemExit(main())
