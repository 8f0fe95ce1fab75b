"""Where two answers differ, and from where the worse one is to be written anew.

Answers are sequences of token ids. Tokens are aligned by difflib's matching blocks, on the host.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher


def differing_places(chosen: Sequence[int], rejected: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the places of either answer whose tokens are not aligned with the other's.

    Example: (5, 6, 7) and (5, 8, 9, 7): place 1 of the first, places 1 and 2 of the second.
    """
    blocks = _matcher(chosen, rejected).get_matching_blocks()
    same = [{block[side] + i for block in blocks for i in range(block.size)} for side in (0, 1)]
    found = [
        [place for place in range(len(answer)) if place not in places]
        for answer, places in zip((chosen, rejected), same, strict=True)
    ]
    return found[0], found[1]


def num_differing(chosen: Sequence[int], rejected: Sequence[int]) -> int:
    """Return how many tokens of both answers are not aligned with the other's.

    Example: (5, 6, 7) and (5, 8, 9, 7): 1 of the first and 2 of the second, 3.
    """
    return sum(map(len, differing_places(chosen, rejected)))


def bridge_starts(chosen: Sequence[int], rejected: Sequence[int], *, num: int) -> list[int]:
    """Return from which places of the rejected answer it is to be written anew, `num` of them.

    The bridging phase of BMC (arXiv 2408.07471) improves the rejected answer with the chosen one as
    its model. Here what comes before a place is kept, and the policy goes on from there. Places are
    those at which a stretch begins in which the two differ, the first always among them; where
    there are more than `num` they are taken evenly, where there are fewer each is taken repeatedly.

    Args:
        chosen, rejected: token ids, the end token included.
        num: how often the rejected answer is to be written anew.

    Returns:
        `num` places in ascending order; none where nothing of the rejected answer differs, as where
        the length limit cut it off within the chosen one.

    Example: chosen (5, 6, 7, 8), rejected (5, 9, 7, 4) differ from places 1 and 3 on: for three
    answers 1, 1, 3.
    """
    opcodes = _matcher(chosen, rejected).get_opcodes()
    starts = [start for tag, _, _, start, _ in opcodes if tag != "equal" and start < len(rejected)]
    if not starts:
        return []
    return [starts[len(starts) * i // num] for i in range(num)]


def _matcher(chosen: Sequence[int], rejected: Sequence[int]) -> SequenceMatcher[int]:
    return SequenceMatcher(None, chosen, rejected, autojunk=False)
