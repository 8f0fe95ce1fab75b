"""python -m podsrl.cli: the podsrl command without its script."""

from podsrl.cli import main

raise SystemExit(main())
