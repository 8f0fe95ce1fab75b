"""A key-value cache that is allocated once, repeats prompts for their rollouts and drops rows.

Concatenation copies every row's whole past at every step; here a step writes one position in
place. Layers with a sliding window keep all positions too: the mask that the model makes for them
hides what has left the window.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)


def computing_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which torch multiplies this one: autocast's where it would cast it.

    Example: float32 on a CPU is bfloat16 under `torch.autocast("cpu")`; float64 stays.
    """
    if dtype == torch.float64 or not torch.is_autocast_enabled(device.type):
        return dtype
    return torch.get_autocast_dtype(device.type)


class RolloutLayer(CacheLayerMixin):
    """Keys and values of one layer, (rows, heads, positions, head size), filled from the left.

    Under autocast they are kept in the dtype in which attention reads them: rotary positions leave
    float32 keys, and all of the cache would be cast again for every token.
    """

    def __init__(self, max_length: int, window: int | None = None) -> None:
        super().__init__()
        self.max_length, self.window = max_length, window
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for the rows, heads and sizes of these states."""
        self.device = key_states.device
        self.dtype = computing_dtype(key_states.device, key_states.dtype)
        self._allocate(key_states, value_states, key_states.shape[0])

    def _allocate(self, keys: Tensor, values: Tensor, rows: int) -> None:
        heads, size = keys.shape[1], keys.shape[3]
        self.keys = keys.new_empty(rows, heads, self.max_length, size, dtype=self.dtype)
        heads, size = values.shape[1], values.shape[3]
        self.values = values.new_empty(rows, heads, self.max_length, size, dtype=self.dtype)
        self.num_rows = rows
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new positions in place; return views of all positions so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        start, self.length = self.length, self.length + key_states.shape[2]
        keys, values = self.keys[: self.num_rows], self.values[: self.num_rows]
        keys[:, :, start : self.length] = key_states
        values[:, :, start : self.length] = value_states
        return keys[:, :, : self.length], values[:, :, : self.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Every position so far and the new ones, from position 0."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.max_length

    def repeated(self, source_B: Tensor, max_length: int) -> "RolloutLayer":
        """A new layer with room for `max_length`, whose row b is this one's row source_B[b]."""
        assert self.keys is not None and self.values is not None
        layer = RolloutLayer(max_length, self.window)
        layer.dtype, layer.device, layer.length = self.dtype, self.device, self.length
        layer._allocate(self.keys, self.values, source_B.shape[0])
        assert layer.keys is not None and layer.values is not None
        layer.keys[:, :, : self.length] = self.keys[source_B, :, : self.length]
        layer.values[:, :, : self.length] = self.values[source_B, :, : self.length]
        return layer

    def of_prompt(self, row: int, length: int) -> tuple[Tensor, Tensor]:
        """Views of a row's last `length` keys and values, (heads, length, head size) each."""
        assert self.keys is not None and self.values is not None
        places = slice(self.length - length, self.length)
        return self.keys[row, :, places], self.values[row, :, places]

    def move_rows(self, target_K: Tensor, source_K: Tensor, num_rows: int) -> None:
        """Copy rows source_K over rows target_K, then keep the first `num_rows` rows."""
        if not self.is_initialized:
            return  # rows that ended before the first of their tokens was read
        assert self.keys is not None and self.values is not None
        for states in (self.keys, self.values):
            # Only what is filled: for most of a rollout's life less than what is allocated.
            filled = states[:, :, : self.length]
            filled[target_K] = filled[source_K]
        self.num_rows = num_rows


class Places:
    """Where each row's next token goes in its cache, when rows have not begun together."""

    def __init__(self, place_B: Tensor) -> None:
        self.set(place_B)

    def set(self, place_B: Tensor) -> None:
        """Other rows stand at other places now; makes the host wait for the device."""
        self.place_B = place_B
        self.num_columns = int(place_B.max()) + 1 if len(place_B) else 1

    def advance(self) -> None:
        """Every row goes on by one token."""
        self.place_B = self.place_B + 1
        self.num_columns += 1

    def hidden(self, window: int | None) -> Tensor:
        """Which of the columns so far a row does not see: bool (B, columns)."""
        column_T = torch.arange(self.num_columns, device=self.place_B.device)
        hidden_BT = column_T > self.place_B[:, None]
        if window is not None:
            hidden_BT |= column_T <= self.place_B[:, None] - window
        return hidden_BT


class PlacesLayer(RolloutLayer):
    """A `RolloutLayer` whose rows, at most `max_rows`, each write at their own place."""

    def __init__(self, max_length: int, window: int | None, max_rows: int, places: Places) -> None:
        super().__init__(max_length, window)
        self.max_rows, self.places = max_rows, places

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for `max_rows` rows, with zeros: what was never written must not be NaN."""
        self.device = key_states.device
        self.dtype = computing_dtype(key_states.device, key_states.dtype)
        self._allocate(key_states, value_states, self.max_rows)
        assert self.keys is not None and self.values is not None
        self.keys.zero_()
        self.values.zero_()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write each row's new position at its place; return views of all columns so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        row_B = torch.arange(key_states.shape[0], device=key_states.device)
        # An indexed place takes its own dtype alone, where a slice would cast.
        self.keys[row_B, :, self.places.place_B] = key_states[:, :, 0].to(self.dtype)
        self.values[row_B, :, self.places.place_B] = value_states[:, :, 0].to(self.dtype)
        self.length = self.places.num_columns
        filled = slice(key_states.shape[0]), slice(None), slice(self.length)
        return self.keys[filled], self.values[filled]


class RolloutCache(Cache):
    """One `RolloutLayer` per layer of the model."""

    layers: list[RolloutLayer]

    @classmethod
    def for_prompts(cls, config: PreTrainedConfig, max_length: int) -> "RolloutCache":
        """An empty cache for a model of this config, with room for `max_length` positions."""
        # Counted from the cache that `generate` would make: some models share one between layers.
        layers = DynamicCache(config=config).layers
        return cls([RolloutLayer(max_length, _window(layer)) for layer in layers])

    def repeated(self, source_B: Tensor, max_length: int) -> "RolloutCache":
        """A new cache whose row b is this one's row source_B[b], with room for `max_length`."""
        return RolloutCache([layer.repeated(source_B, max_length) for layer in self.layers])

    def empty(self, max_length: int) -> "RolloutCache":
        """A new cache for the same layers that holds nothing yet, with room for `max_length`."""
        return RolloutCache([RolloutLayer(max_length, layer.window) for layer in self.layers])

    @classmethod
    def at_places(
        cls, prompts: "RolloutCache", max_length: int, max_rows: int, places: Places
    ) -> "RolloutCache":
        """An empty cache for the same layers, whose rows write at their own places."""
        return cls([PlacesLayer(max_length, x.window, max_rows, places) for x in prompts.layers])

    def move_rows(self, target_K: Tensor, source_K: Tensor, num_rows: int) -> None:
        """Copy rows source_K over rows target_K, then keep the first `num_rows` rows.

        Filling the holes that ended rows left costs one copy per hole, not one per living row.
        """
        for layer in self.layers:
            layer.move_rows(target_K, source_K, num_rows)


def _window(layer: CacheLayerMixin) -> int | None:
    return layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None


def refuse_cache(config: PreTrainedConfig) -> str | None:
    """The reason why a model of this config needs more state than keys and values, or None."""
    for layer in DynamicCache(config=config).layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return f"{config.model_type} has cache layers of type {type(layer).__name__}"
    return None
