"""PairConfig: the fields of PODSConfig that belong to objectives over pairs, and their checks."""

from dataclasses import dataclass, field

from podsrl.core.objectives.pairing import PAIR_MODES
from podsrl.trl.advantage_config import AdvantageConfig


@dataclass
class PairConfig(AdvantageConfig):
    """AdvantageConfig with the options of pair objectives; None takes the objective's own value.

    Raises `ValueError` for an unknown pair mode and for numbers out of range.

    Example: `objective="tdpo2", tdpo_alpha=0.25`.
    """

    pair_mode: str | None = field(
        default=None,
        metadata={
            "help": "Pair objectives: 'extremes' pairs a group's i-th highest with its i-th lowest "
            "kept reward, 'all' every two of different reward. Default: extremes."
        },
    )
    tdpo_alpha: float | None = field(
        default=None,
        metadata={"help": "objective='tdpo2': weight of the divergence. Default: 0.5."},
    )
    bmc_delta: float | None = field(
        default=None,
        metadata={
            "help": "objective='bmc': most that a token's weight grows where the rollouts of a "
            "pair differ. Default: 2."
        },
    )
    rbrm_alpha: float | None = field(
        default=None,
        metadata={
            "help": "objective='rbrm': confidence in a pair is sigmoid(rbrm_alpha x difference of "
            "its rewards). Default: 7.5."
        },
    )
    sdpo_first_turn: int | None = field(
        default=None,
        metadata={"help": "objective='sdpo': first turn that is compared. Default: 0."},
    )
    sdpo_num_turns: int | None = field(
        default=None,
        metadata={"help": "objective='sdpo': number of turns compared. Default: to the end."},
    )
    veripo_policy_steps: int | None = field(
        default=None,
        metadata={
            "help": "objective='veripo': steps of TRL's loss in turn with pairs. Default: 8."
        },
    )
    veripo_pair_steps: int | None = field(
        default=None,
        metadata={
            "help": "objective='veripo': steps of pairs in turn with TRL's loss. Default: 2."
        },
    )
    veripo_drop_solved: float | None = field(
        default=None,
        metadata={
            "help": "objective='veripo': share by which prompts that all n rollouts solve (first "
            "reward function 1) count less in pair steps. Default: 0.8."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pair_mode not in (None, *PAIR_MODES):
            raise ValueError(
                f"pair_mode is {self.pair_mode!r}; choose one of {', '.join(PAIR_MODES)}."
            )
        for name in ("tdpo_alpha", "bmc_delta", "rbrm_alpha", "sdpo_first_turn"):
            self._check_at_least(name, 0)
        for name in ("sdpo_num_turns", "veripo_policy_steps", "veripo_pair_steps"):
            self._check_at_least(name, 1)
        if self.veripo_drop_solved is not None and not 0 <= self.veripo_drop_solved <= 1:
            raise ValueError(
                f"veripo_drop_solved is {self.veripo_drop_solved}: a share, choose 0 to 1."
            )

    def _check_at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and not value >= least:
            raise ValueError(f"{name} is {value}: choose at least {least}.")
