"""Synthetic rows for a learner with few real ones: distribution-aware flow matching, small.

    python examples/few_shot_tabular.py --seeds 20

A processor chooses its frequency at each step; frames per second, power and temperature follow
(`Board`, a stand-in for the paper's Jetson board, with a thermal resistance and capacity). From 20
transitions under random frequencies a Q-table is fitted, from these alone or with 2,000 more rows:

    jitter   real rows drawn again, with a little noise: the control
    flow     flow matching on the 8 columns of a transition
    dafm     the same with columns weighted by a random forest, and latents bootstrapped
    real     as many further real rows: what synthetic ones could be worth at most

Method: Distribution-Aware Flow Matching, arXiv 2409.14178 (second-hand: its published code was not
found). The flow is v(x_t, t), x_t = (1 - t) x_0 + t x_1 between noise x_0 and a row x_1, with the
least mean of sum_d w_d (v_d - (x_1 - x_0)_d)^2. Nothing of podsrl is needed or changed.

Shape letters: B rows, D columns, S states, A actions.
"""

import argparse
import math

import torch
from torch import Tensor, nn

COLUMNS = ("fps", "power", "temperature", "frequency", "reward", "fps'", "power'", "temperature'")
NUM_LEVELS = 8
GIGAHERTZ = torch.linspace(0.3, 2.0, NUM_LEVELS)
DISCOUNT = 0.9
STEPS_PER_EPISODE = 40
# Bins of the Q-table: frames per second, and temperature in degrees.
FPS_EDGES = torch.tensor([15.0, 30.0, 45.0])
TEMPERATURE_EDGES = torch.tensor([45.0, 55.0, 65.0, 75.0])


class Board:
    """Any number of simulated processors side by side, each with a load that drifts."""

    def __init__(self, num: int, generator: torch.Generator) -> None:
        self.random = generator
        self.load = 1 + 0.2 * self._normal(num)
        self.temperature = 40 + 30 * torch.rand(num, generator=generator)
        self.fps, self.power = torch.full((num,), 30.0), torch.full((num,), 3.0)

    def _normal(self, num: int) -> Tensor:
        return torch.randn(num, generator=self.random)

    def state(self) -> Tensor:
        """Frames per second, watts, degrees: (B, 3)."""
        return torch.stack([self.fps, self.power, self.temperature], dim=1)

    def step(self, action: Tensor) -> Tensor:
        """Run a step at a frequency level and return the reward: frames for watts, and no heat.

        fps / 60 - watts / 20, and 1 less above 80 degrees, where the processor also runs at half
        its frequency.
        """
        num, hot = len(action), self.temperature > 80
        frequency = GIGAHERTZ[action] * torch.where(hot, 0.5, 1.0)
        self.load = (1 + 0.9 * (self.load - 1) + 0.1 * self._normal(num)).clamp(0.4, 2.0)
        self.fps = (45 * frequency / self.load + self._normal(num)).clamp(0, 60)
        self.power = 1 + 1.5 * frequency**3 + 0.02 * (self.temperature - 25).clamp(min=0)
        # Towards 25 degrees + 5 a watt, a tenth of the way a step.
        self.temperature = self.temperature + 0.1 * (25 + 5 * self.power - self.temperature)
        return self.fps / 60 - self.power / 20 - (self.temperature > 80).float()


def transitions(num: int, generator: torch.Generator) -> Tensor:
    """Rows (B, 8) of `COLUMNS`, each from a board of its own under random levels."""
    board = Board(num, generator)
    for _ in range(10):  # away from the state that all begin in
        board.step(torch.randint(NUM_LEVELS, (num,), generator=generator))
    before, action = board.state(), torch.randint(NUM_LEVELS, (num,), generator=generator)
    reward = board.step(action)
    return torch.cat([before, action[:, None].float(), reward[:, None], board.state()], dim=1)


def importances(x_BD: Tensor, y_B: Tensor, generator: torch.Generator, trees: int = 30) -> Tensor:
    """Share of the variance of y that a random forest explains by each column of x, (D,), sum 1.

    Each tree takes a bootstrap sample and, at each node, the best of three random splits.
    """
    gain_D = torch.zeros(x_BD.shape[1])
    for _ in range(trees):
        rows = torch.randint(len(x_BD), (len(x_BD),), generator=generator)
        nodes = [rows]
        while nodes:
            node = nodes.pop()
            splits = [_split(x_BD[node], y_B[node], generator) for _ in range(3)]
            gain, column, left = max(splits, key=lambda split: split[0])
            if gain > 0:
                gain_D[column] += gain
                nodes += [part for part in (node[left], node[~left]) if len(part) >= 5]
    return gain_D / gain_D.sum().clamp(min=1e-12)


def _split(x_BD: Tensor, y_B: Tensor, generator: torch.Generator) -> tuple[float, int, Tensor]:
    """Sum of squares that a random split explains, its column, and who goes left."""
    column = int(torch.randint(x_BD.shape[1], (), generator=generator))
    at = x_BD[int(torch.randint(len(x_BD), (), generator=generator)), column]
    left = x_BD[:, column] < at
    if not left.any():
        return 0.0, column, left
    inside = sum(((part - part.mean()) ** 2).sum() for part in (y_B[left], y_B[~left]))
    return float(((y_B - y_B.mean()) ** 2).sum() - inside), column, left


def weights_of(rows_BD: Tensor, generator: torch.Generator) -> Tensor:
    """Weight of each column in the flow's loss, mean 1: its importance for the reward.

    The reward's own column weighs 1. Weights change what a small network is good at, not what the
    best one is: the least loss is at the same flow for all of them.
    """
    reward = COLUMNS.index("reward")
    others = [d for d in range(rows_BD.shape[1]) if d != reward]
    weights_D = torch.ones(rows_BD.shape[1])
    found = importances(rows_BD[:, others], rows_BD[:, reward], generator)
    weights_D[others] = found * len(others)
    return weights_D


class Flow(nn.Module):
    """The velocity v(x, t) of rows in units of their standard deviation."""

    def __init__(self, num_columns: int, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(num_columns + 1, width), nn.SiLU()]
        layers += [nn.Linear(width, width), nn.SiLU(), nn.Linear(width, num_columns)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x_BD: Tensor, t_B1: Tensor) -> Tensor:
        return self.layers(torch.cat([x_BD, t_B1], dim=1))

    @torch.no_grad()
    def run(self, x_BD: Tensor, num_steps: int, *, backwards: bool = False) -> Tensor:
        """From noise to rows, or backwards, in Euler steps."""
        step = (-1.0 if backwards else 1.0) / num_steps
        for i in range(num_steps):
            t = 1 - i / num_steps if backwards else i / num_steps
            x_BD = x_BD + step * self(x_BD, torch.full((len(x_BD), 1), t))
        return x_BD


def fit_flow(x_BD: Tensor, weights_D: Tensor, generator: torch.Generator, num_steps: int) -> Flow:
    """Flow matching on standardised rows, 128 pairs of noise and row a step."""
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
    flow = Flow(x_BD.shape[1])
    optimizer = torch.optim.Adam(flow.parameters(), lr=2e-3)
    for _ in range(num_steps):
        rows = torch.randint(len(x_BD), (128,), generator=generator)
        noise_BD = torch.randn(128, x_BD.shape[1], generator=generator)
        t_B1 = torch.rand(128, 1, generator=generator)
        error_BD = flow((1 - t_B1) * noise_BD + t_B1 * x_BD[rows], t_B1) - (x_BD[rows] - noise_BD)
        loss = (weights_D * error_BD**2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return flow


def bootstrapped(latent_BD: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Latents from normals with mean and covariance of bootstrap samples of the real rows' ones."""
    parts = []
    for _ in range(10):
        rows = torch.randint(len(latent_BD), (len(latent_BD),), generator=generator)
        sample_BD = latent_BD[rows]
        covariance = torch.cov(sample_BD.T) + 1e-3 * torch.eye(latent_BD.shape[1])
        noise_BD = torch.randn(-(-num // 10), latent_BD.shape[1], generator=generator)
        parts.append(sample_BD.mean(dim=0) + noise_BD @ torch.linalg.cholesky(covariance).T)
    return torch.cat(parts)[:num]


def synthetic(
    rows_BD: Tensor, num: int, kind: str, generator: torch.Generator, num_steps: int = 500
) -> Tensor:
    """`num` rows made of the real ones, by the ways that the head of this file names."""
    if kind == "real":
        return transitions(num, generator)
    mean_D, std_D = rows_BD.mean(dim=0), rows_BD.std(dim=0).clamp(min=1e-6)
    x_BD = (rows_BD - mean_D) / std_D
    if kind == "jitter":
        x_BD = x_BD[torch.randint(len(x_BD), (num,), generator=generator)]
        x_BD = x_BD + 0.1 * torch.randn(x_BD.shape, generator=generator)
    else:
        weights_D = weights_of(x_BD, generator) if kind == "dafm" else torch.ones(x_BD.shape[1])
        flow = fit_flow(x_BD, weights_D, generator, num_steps)
        latent_BD = torch.randn(num, x_BD.shape[1], generator=generator)
        if kind == "dafm":
            latent_BD = bootstrapped(flow.run(x_BD, 50, backwards=True), num, generator)
        x_BD = flow.run(latent_BD, 50)
    return x_BD * std_D + mean_D


def cells(fps_B: Tensor, temperature_B: Tensor) -> Tensor:
    """The Q-table's row of a state."""
    column_B = torch.bucketize(temperature_B.contiguous(), TEMPERATURE_EDGES)
    return torch.bucketize(fps_B.contiguous(), FPS_EDGES) * (len(TEMPERATURE_EDGES) + 1) + column_B


def fit_table(rows_BD: Tensor) -> Tensor:
    """Q (S, A) by 50 rounds of Q-learning on the mean of each cell's targets; 0 where no row is."""
    num_cells = (len(FPS_EDGES) + 1) * (len(TEMPERATURE_EDGES) + 1)
    action_B = rows_BD[:, 3].round().long().clamp(0, NUM_LEVELS - 1)
    here_B, next_B = cells(rows_BD[:, 0], rows_BD[:, 2]), cells(rows_BD[:, 5], rows_BD[:, 7])
    place_B = here_B * NUM_LEVELS + action_B
    count = torch.zeros(num_cells * NUM_LEVELS).index_add(0, place_B, torch.ones(len(place_B)))
    table_SA = torch.zeros(num_cells, NUM_LEVELS)
    for _ in range(50):
        target_B = rows_BD[:, 4] + DISCOUNT * table_SA.amax(dim=1)[next_B]
        total = torch.zeros(num_cells * NUM_LEVELS).index_add(0, place_B, target_B)
        table_SA = (total / count.clamp(min=1)).view(num_cells, NUM_LEVELS)
    return table_SA


def mean_reward(table_SA: Tensor, generator: torch.Generator, num: int = 200) -> float:
    """Reward a step of the greedy policy, over boards that begin alike for every table."""
    board, total = Board(num, generator), 0.0
    for _ in range(STEPS_PER_EPISODE):
        state_B = cells(board.fps, board.temperature)
        total += float(board.step(table_SA[state_B].argmax(dim=1)).mean())
    return total / STEPS_PER_EPISODE


KINDS = ("none", "jitter", "flow", "dafm", "real")


def study(
    num_seeds: int, *, num_real: int = 20, num_rows: int = 2000, num_steps: int = 500
) -> dict[str, list[float]]:
    """By kind of further rows the reward a step of each seed's policy."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for seed in range(num_seeds):
        real_BD = transitions(num_real, torch.Generator().manual_seed(seed))
        for kind in KINDS:
            rows_BD, generator = real_BD, torch.Generator().manual_seed(10_000 + seed)
            if kind != "none":
                more_BD = synthetic(real_BD, num_rows, kind, generator, num_steps)
                rows_BD = torch.cat([real_BD, more_BD])
            table_SA = fit_table(rows_BD)
            found[kind].append(mean_reward(table_SA, torch.Generator().manual_seed(20_000 + seed)))
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval, by the normal quantile; of two values and more."""
    x = torch.tensor(values, dtype=torch.float64)
    return float(x.mean()), float(1.96 * x.std() / math.sqrt(len(values)))


def main() -> None:
    """Print what each kind of rows is worth, paired by seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--real", type=int, default=20, help="real transitions (default: 20)")
    parser.add_argument("--steps", type=int, default=500, help="of the flow (default: 500)")
    options = parser.parse_args()
    found = study(options.seeds, num_real=options.real, num_steps=options.steps)
    print(f"reward a step over {options.seeds} seeds, {options.real} real rows; minus none")
    for kind, values in found.items():
        differences = [a - b for a, b in zip(values, found["none"], strict=True)]
        (mean, half), (gain, spread) = interval(values), interval(differences)
        print(f"{kind:8} {mean:.3f} +- {half:.3f}   {gain:+.3f} +- {spread:.3f}")


if __name__ == "__main__":
    main()
