"""How many rollouts may be decoded at once, from what one of them occupies.

Shape letters: P prompts, N rollouts per prompt, B flat rows.
"""

import itertools
import os

import torch
from transformers import PreTrainedConfig

from podsrl.sampling.settings import SamplingSettings

# The other half is for what a forward pass needs on the way and for whoever shares the device.
SHARE_OF_FREE_MEMORY = 0.5


def cache_bytes_per_row(
    config: PreTrainedConfig, num_tokens: int, *, dtype: torch.dtype = torch.float32
) -> int:
    """Bytes of keys and values of one rollout: 2 x layers x key heads x head size x tokens x item.

    num_tokens: prompt and new tokens together. Layers with a sliding window count in full, as
    `RolloutCache` keeps all of their positions.
    Example: 30 layers of 3 key heads of 64, 72 tokens, float32: 2*30*3*64*72*4 = 3,317,760.
    """
    num_values = 0
    for layer in config.per_layer_config:
        heads = getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads
        size = getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
        num_values += 2 * heads * size
    return num_values * num_tokens * dtype.itemsize


def bytes_per_row(
    config: PreTrainedConfig,
    num_prompt_tokens: int,
    *,
    settings: SamplingSettings,
    dtype: torch.dtype,
    num_sharing: int = 1,
) -> int:
    """What one rollout occupies: cache, its share of drawing one token, and what is noted of it.

    num_sharing: rollouts that read one copy of the prompt's keys and values, whose share counts;
    1: a copy of its own. Drawing takes the logits as they come and twice in float32; with top_p
    all of them may be sorted, at 36 bytes per entry (weights, sorted values and their places, the
    sort's own buffers or sums in float64; benchmarks/shared_prompt.py measures it). Noted are a
    uniform number, a token and a log-prob per step, with a repetition penalty the context too.

    Example: 30 layers of 3 key heads of 64 in float32, prompts of 48 and 24 new tokens, 49,152
    entries: 3,317,760 for 72 tokens, 49,152 * 12 = 589,824 for a draw, 24 * 20 = 480: 3,908,064.
    With 16 rollouts to a prompt 27 tokens count: 1,244,160 and the same 590,304.
    """
    num_new = settings.max_new_tokens
    num_tokens = num_new + -(-num_prompt_tokens // num_sharing)
    draw = config.vocab_size * (dtype.itemsize + (36 if settings.top_p < 1 else 8))
    noted = 20 * num_new
    if settings.repetition_penalty != 1:
        noted += 8 * (num_prompt_tokens + num_new)
    return cache_bytes_per_row(config, num_tokens, dtype=dtype) + draw + noted


def free_bytes(device: torch.device) -> int:
    """Memory not in use on the device; what torch's allocator holds in reserve counts as free."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    # macOS does not say how many pages are free: count on a quarter of all.
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return page_bytes * os.sysconf("SC_AVPHYS_PAGES")
    return page_bytes * os.sysconf("SC_PHYS_PAGES") // 4


def rows_within(num_bytes: int, row_bytes: int) -> int:
    """Rows of `row_bytes` that fit into `num_bytes`, at least 1.

    Raises `ValueError` when not even one row fits.
    Example: 10,000,000 bytes hold 3 rows of 3,317,760 bytes.
    """
    if num_bytes < row_bytes:
        raise ValueError(
            f"one rollout needs {row_bytes:,} bytes, more than the {num_bytes:,} that sampling may "
            "use; lower max_new_tokens or free memory"
        )
    return num_bytes // row_bytes


def plan_chunks(
    num_prompts: int, num_rollouts: int, max_rows: int
) -> list[tuple[range, list[int]]]:
    """Prompts that are read together, and how many rollouts of each to decode at a time.

    Each entry: a range of prompts and a list of counts that add up to `num_rollouts`; count by
    count, that many rollouts of every prompt of the range are decoded together, which are never
    more than `max_rows` rows. Parts are as equal as can be, since a small last part would cost a
    step of its own for nearly the same time.
    Example: 4 prompts x 6 at most 12 rows: prompts 0-1 then 2-3, 6 rollouts at a time; at most 4
    rows: each prompt alone, 3 and 3.
    """
    if max_rows < 1:
        raise ValueError(f"max_rows={max_rows} must be at least 1")
    # A prompt's rollouts together before several prompts together: its cache is read once for all.
    prompts_at_once = max(1, min(num_prompts, max_rows // num_rollouts))
    counts = _equal_parts(num_rollouts, max_rows)
    starts = [0]
    for size in _equal_parts(num_prompts, prompts_at_once):
        starts.append(starts[-1] + size)
    return [(range(start, stop), counts) for start, stop in itertools.pairwise(starts)]


def _equal_parts(total: int, largest: int) -> list[int]:
    """The fewest parts of at most `largest`, differing by at most one."""
    num_parts = -(-total // largest)
    size, rest = divmod(total, num_parts)
    return [size + 1] * rest + [size] * (num_parts - rest)
