"""MAML on 2-D navigation with TorchOpt's differentiable optimiser, as `benchmarks/peers.py` asks for it.

The loop over tasks is the way that TorchOpt is meant for: an inner step of ``MetaSGD``, a backward pass, the parameters
recovered. Environment, network, baseline, advantages and numbers are those of this
library's side. All streams of a task act at once, and before adaptation those of all tasks. Runs in an environment of
its own.
"""

import math

import torch
import torchopt
from turns import learn, settings

DISCOUNT, LAMBDA, STEP_SIZE, LEARNING_RATE, MAX_NORM = 0.99, 0.95, 0.5, 5e-3, 10.0
MAX_MOVE, GOAL_RANGE, RIDGE = 0.1, 0.5, 1e-4
EVALUATED = 100  # held-out tasks

torch.set_num_threads(1)
told = settings()
num_tasks, num_streams, num_steps = told["num_tasks"], told["num_streams"], told["num_steps"]


class Policy(torch.nn.Module):
    """A tanh network to the mean of a Gaussian whose standard deviation is its own parameter."""

    def __init__(self) -> None:
        super().__init__()
        layers = [torch.nn.Linear(2, 64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 2)]
        for layer, scale in zip(layers, (1.0, 1.0, 0.01), strict=True):
            torch.nn.init.xavier_normal_(layer.weight, gain=scale)
            torch.nn.init.zeros_(layer.bias)
        first, second, last = layers
        self.mean = torch.nn.Sequential(first, torch.nn.Tanh(), second, torch.nn.Tanh(), last)
        self.log_std = torch.nn.Parameter(torch.zeros(2))

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return MAX_MOVE * self.mean(obs), self.log_std + math.log(MAX_MOVE)

    def log_prob(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        mean, log_std = self(obs)
        z = (action - mean) * torch.exp(-log_std)
        return (-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Observations and actions ``[T, ..., 2]`` and rewards ``[T, ...]``."""


@torch.no_grad()
def experience(policy: Policy, goals: torch.Tensor) -> Batch:
    """An episode towards each of ``goals [..., 2]``."""
    position = torch.zeros_like(goals)
    noise = torch.randn(num_steps, *goals.shape)
    seen: list[Batch] = []
    for t in range(num_steps):
        mean, log_std = policy(position)
        action = mean + torch.exp(log_std) * noise[t]
        moved = position + action.clamp(-MAX_MOVE, MAX_MOVE)
        seen.append((position, action, -((moved - goals) ** 2).sum(-1)))
        position = moved
    return tuple(torch.stack(x) for x in zip(*seen, strict=True))  # type: ignore[return-value]


def discounted_sums(x: torch.Tensor, factor: float) -> torch.Tensor:
    """``y_t = x_t + factor · y_{t+1}`` along the first axis."""
    sums, total = [], torch.zeros_like(x[0])
    for row in x.flip(0):
        total = row + factor * total
        sums.append(total)
    return torch.stack(sums).flip(0)


U = 2 * torch.arange(num_steps) / num_steps - 1
TIME = torch.stack([U, U**2, U**3, torch.ones(num_steps)], -1)


def advantages(obs: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
    """Of one task, ``[T, N]``, against the linear baseline, for each stream fitted to the others."""
    time = TIME[:, None].expand(*reward.shape, 4)
    features = torch.cat([obs, obs**2, time], -1)  # [T, N, F]
    returns = discounted_sums(reward, DISCOUNT)
    gram = torch.einsum("tnf,tng->nfg", features, features)
    moment = torch.einsum("tnf,tn->nf", features, returns)
    gram, moment = gram.sum(0) - gram, moment.sum(0) - moment
    penalty = RIDGE * torch.diagonal(gram, dim1=1, dim2=2) + 1e-6 * num_steps
    weights = torch.linalg.solve(gram + torch.diag_embed(penalty), moment)
    value = torch.einsum("tnf,nf->tn", features, weights)
    following = torch.cat([value[1:], torch.zeros_like(value[:1])])
    return discounted_sums(reward + DISCOUNT * following - value, DISCOUNT * LAMBDA)


WEIGHT = DISCOUNT ** torch.arange(num_steps)[:, None]


def loss(policy: Policy, batch: Batch) -> torch.Tensor:
    """The low-variance curvature surrogate (Rothfuss et al. 2019), whose gradient is the policy's."""
    obs, action, reward = batch
    log_prob = policy.log_prob(obs, action)
    ratio = torch.exp(log_prob - log_prob.detach())
    return -(WEIGHT * ratio * advantages(obs, reward)).mean()


class Run:
    """The policy that is trained, and its optimisers."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.policy = Policy()
        self.inner = torchopt.MetaSGD(self.policy, lr=STEP_SIZE)
        self.outer = torch.optim.Adam(self.policy.parameters(), lr=LEARNING_RATE)

    def adapted(self, goals: torch.Tensor, learn: bool) -> float:
        """The mean return after an inner step in each task; and an outer step over them, if asked for."""
        begun = [torchopt.extract_state_dict(x, by="reference") for x in (self.policy, self.inner)]
        targets = goals[:, None].expand(-1, num_streams, 2)
        before = experience(self.policy, targets)
        earned = 0.0
        self.outer.zero_grad()
        for m in range(len(goals)):
            self.inner.step(loss(self.policy, tuple(x[:, m] for x in before)))  # type: ignore[arg-type]
            after = experience(self.policy, targets[m])
            earned += float(after[2].sum(0).mean()) / len(goals)
            if learn:
                (loss(self.policy, after) / len(goals)).backward()
            for x, state in zip((self.policy, self.inner), begun, strict=True):
                torchopt.recover_state_dict(x, state)
        if learn:
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), MAX_NORM)
            self.outer.step()
        return earned


def goals(count: int) -> torch.Tensor:
    return (2 * torch.rand(count, 2) - 1) * GOAL_RANGE


def updated(run: Run) -> Run:
    run.adapted(goals(num_tasks), learn=True)
    return run


def earned(seed: int, run: Run) -> float:
    kept = torch.get_rng_state()
    torch.manual_seed(10**6 + seed)
    found = run.adapted(goals(EVALUATED), learn=False)
    torch.set_rng_state(kept)
    return found


learn(Run, updated, earned)
