"""DiscoRL's networks in NumPy, float64, a step, a piece and an action at a time, by the names of the published arrays.

It is written from the paper's description and shares nothing with the library.
"""

import numpy as np

LIFE = "lstm/~/meta_lstm/~unroll"


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.where(x > 0, x, 0.0)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def log_softmax(x):
    return x - x.max() - np.log(np.sum(np.exp(x - x.max())))


def signed_log(x):
    return np.sign(x) * np.log(1 + np.abs(x))


def squash(x):
    return np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + 0.001 * x


def unsquash(y):
    """The root of ``squash(x) = y`` by bisection."""
    low, high = -1e6, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if squash(middle) < y else (low, middle)
    return (low + high) / 2


def value(logits):
    return unsquash(np.sum(softmax(logits) * np.arange(-300, 301)))


def lstm(gates, cell):
    i, g, f, o = np.split(gates, 4)
    cell = sigmoid(f + 1) * cell + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(cell), cell


def weights(shapes, seed=0):
    """Random weights, with biases, of published ``shapes``."""
    rng = np.random.default_rng(seed)
    scale = {
        name: 0.3 if name[-1] == "b" else np.prod(x[:-1]) ** -0.5 for name, x in shapes.items()
    }
    return {name: scale[name] * rng.normal(size=x) for name, x in shapes.items()}


def embed(w, name, logits):
    hidden = relu(softmax(logits) @ w[f"{name}/~/linear_0/w"] + w[f"{name}/~/linear_0/b"])
    return (hidden @ w[f"{name}/~/linear_1/w"] + w[f"{name}/~/linear_1/b"])[0]


def among_actions(w, name, rows):
    """One layer: each action's row, and at its side the mean of all rows."""
    mean = sum(rows) / len(rows)
    kernel, bias = w[f"{name}/w"][0], w[f"{name}/b"]
    return [relu(np.concatenate([row, mean]) @ kernel + bias) for row in rows]


def inputs(w, at, x, b, t):
    """``(inputs [27], channels of actions)`` of a step."""
    num_actions = x["behaviour"].shape[-1]
    a = x["action"][b, t]
    pi, slow_pi, mu = x["policy"][b, t], x["slow_policy"][b, t], x["behaviour"][b, t]
    z, slow_z = (
        [
            [embed(w, f"{at}/mlp_1", x[name][b, s, i]) for i in range(num_actions)]
            for s in (t, t + 1)
        ]
        for name in ("z", "slow_z")
    )
    rows = [
        np.array(
            [
                pi[i],
                mu[i],
                slow_pi[i],
                z[0][i],
                slow_z[0][i],
                signed_log(x["slow_q"][b, t, i]),
                signed_log(x["action_advantage"][b, t, i]),
                x["scaled_action_advantage"][b, t, i],
                float(i == a),
            ]
        )
        for i in range(num_actions)
    ]
    rows = among_actions(w, f"{at}/sequential/conv1_d", rows)
    rows = among_actions(w, f"{at}/sequential/conv1_d_1", rows)
    numbers = [pi[a], mu[a], signed_log(x["reward"][b, t]), 1.0 - x["last"][b, t]]
    numbers += [signed_log(x["value"][b, s]) for s in (t, t + 1)]
    numbers += [signed_log(x["advantage"][b, t]), x["scaled_advantage"][b, t], slow_pi[a]]
    numbers += [embed(w, f"{at}/mlp", x["y"][b, s]) for s in (t, t + 1)]
    numbers += [embed(w, f"{at}/mlp", x["slow_y"][b, s]) for s in (t, t + 1)]
    for own in (z, slow_z):
        numbers += [own[0][a]]
        # The policy, not its slow copy, weighs both.
        numbers += [
            sum(x["policy"][b, t + s, i] * own[s][i] for i in range(num_actions)) for s in (0, 1)
        ]
        numbers += [max(own[s]) for s in (0, 1)]
    numbers += list(sum(rows) / num_actions) + list(rows[a])
    return np.array(numbers), rows


def meta_network(w, memory, x):
    """``(targets, memory)`` of all pieces; ``x`` has the fields of the library's `Experience`."""
    batch, length = x["action"].shape
    num_actions, m = x["behaviour"].shape[-1], x["y"].shape[-1]
    gate = memory[0] @ w["lstm/linear/w"] + w["lstm/linear/b"]
    size = gate.shape[0]
    targets = {
        "policy": np.zeros((batch, length, num_actions)),
        "y": np.zeros((batch, length, m)),
        "z": np.zeros((batch, length, m)),
    }
    embedded = []
    for b in range(batch):
        h, cell = np.zeros(size), np.zeros(size)
        for t in reversed(range(length)):
            if x["last"][b, t]:
                h, cell = np.zeros(size), np.zeros(size)
            numbers, rows = inputs(w, "lstm", x, b, t)
            gates = np.concatenate([numbers, h]) @ w["lstm/lstm/linear/w"]
            h, cell = lstm(gates + w["lstm/lstm/linear/b"], cell)
            out = h * gate
            e = out @ w["lstm/linear_1/w"] + w["lstm/linear_1/b"]
            targets["y"][b, t] = out @ w["lstm/linear_2/w"] + w["lstm/linear_2/b"]
            targets["z"][b, t] = out @ w["lstm/linear_3/w"] + w["lstm/linear_3/b"]
            beside = [np.concatenate([out, row]) for row in rows]
            for i, row in enumerate(among_actions(w, "lstm/sequential_1/conv1_d", beside)):
                targets["policy"][b, t, i] = (row @ w["lstm/linear_4/w"] + w["lstm/linear_4/b"])[0]
            numbers, _ = inputs(w, LIFE, x, b, t)
            said = embed(w, f"{LIFE}/mlp", targets["y"][b, t])
            numbers = np.concatenate([numbers, e, [said]])
            embedded.append(
                numbers @ w[f"{LIFE}/mlp_2/~/linear_0/w"] + w[f"{LIFE}/mlp_2/~/linear_0/b"]
            )
    mean = sum(embedded) / len(embedded)
    gates = np.concatenate([mean, memory[0]]) @ w[f"{LIFE}/lstm/linear/w"]
    return targets, lstm(gates + w[f"{LIFE}/lstm/linear/b"], memory[1])


def agent(p, obs, num_layers=2):
    """The agent's outputs at one observation."""

    def linear(name, x):
        return x @ p[name]["kernel"] + p[name]["bias"]

    x = np.ravel(obs)
    for i in range(num_layers):
        x = linear(f"torso_{i}", x)
        if i < num_layers - 1:
            x = relu(x)
    outputs = {"logits": linear("logits", x), "y": linear("y", x), "z": [], "aux": [], "q": []}
    root = linear("root", x)
    num_actions = len(outputs["logits"])
    for a in range(num_actions):
        one_hot = np.eye(num_actions)[a]
        h, _ = lstm(linear("model", np.concatenate([one_hot, np.tanh(root)])), root)
        for name in ("z", "aux", "q"):
            outputs[name].append(linear(f"{name}_1", relu(linear(f"{name}_0", h))))
    return {name: np.array(x) for name, x in outputs.items()}


def returns(reward, last, rho, value, q_taken, discount, lambda_):
    """G of one piece ``[T]``: ``value [T + 1]``, ``q_taken [T]``."""
    length = len(reward)
    g = np.zeros(length)
    for t in reversed(range(length)):
        gamma = discount * (1.0 - last[t])
        g[t] = reward[t] + gamma * value[t + 1]
        if t < length - 1:
            c = lambda_ * min(1.0, rho[t + 1])
            g[t] += gamma * c * (g[t + 1] - q_taken[t + 1])
    return g


def kl(p, q):
    """KL between distributions with these logits."""
    return np.sum(softmax(p) * (log_softmax(p) - log_softmax(q)))


def loss(outputs, targets, action, last, g, b, t):
    """The loss of one step; ``outputs [B, T + 1]`` and ``targets [B, T]`` are dicts."""
    a = action[b, t]
    total = kl(targets["policy"][b, t], outputs["logits"][b, t])
    total += kl(targets["y"][b, t], outputs["y"][b, t])
    total += kl(targets["z"][b, t], outputs["z"][b, t, a])
    if not last[b, t]:
        total += kl(outputs["logits"][b, t + 1], outputs["aux"][b, t, a])
    x = np.clip(squash(g[b, t]), -300, 300)
    low = min(int(np.floor(x)), 299)
    share = x - low
    log_q = log_softmax(outputs["q"][b, t, a])
    return total - 0.2 * ((1 - share) * log_q[low + 300] + share * log_q[low + 301])
