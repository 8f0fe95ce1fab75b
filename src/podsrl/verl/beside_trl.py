"""verl in one environment with TRL 1, which podsrl brings along.

Where TRL is installed, verl 0.9 patches its model with a value head, which TRL dropped with its
first release: every FSDP worker ends in an ImportError. The model is a critic's, and PODS goes with
none (podsrl.verl.settings), so verl's workers are told that there is no TRL.
"""

from verl.models.transformers import monkey_patch

from podsrl.extras import version_of


def tell_verl() -> None:
    """Let verl pass over an installed TRL that has no model with a value head."""
    trl = version_of("trl")
    if trl is not None and int(trl.split(".")[0]) >= 1:
        monkey_patch.is_trl_available = lambda: False
