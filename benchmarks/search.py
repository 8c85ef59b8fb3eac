"""Simulations per CPU-second of batched tree search, ours beside mctx + pgx (JAX), OpenSpiel and the network alone.

64 games, 32 simulations a move, one thread; the same networks in torch and in JAX: three 3 × 3 convolutions of 64
channels for Connect Four, an MLP of 3 × 128 for tic-tac-toe. Engines alternate on one core, since XLA's
threads share what one alone would do; the best of the rounds is printed, since a shared machine only ever adds time.
The part of a network is also told for JAX. A peer that is not installed is skipped. `pipeline` prints games per second
of tic-tac-toe self-play with its replay buffer, workers and batches instead.

Run: `python benchmarks/search.py [search|pipeline] [--rounds 5] [--no-peers] [--seconds 15]`.
"""

import argparse
import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import time  # noqa: E402
from collections.abc import Callable  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from ai.data import Datagen  # noqa: E402
from ai.game import (  # noqa: E402
    ConnectFour,
    Gumbel,
    NetEvaluator,
    Play,
    Puct,
    Search,
    SelfPlay,
    TicTacToe,
    fast,
)

GAMES, SIMULATIONS = 64, 32


class Conv(nn.Module):
    """Three convolutions and two heads, 6.4 MFLOP a position."""

    def __init__(self) -> None:
        super().__init__()
        convs = [nn.Conv2d(c, 64, 3, padding=1) for c in (2, 64, 64)]
        self.body = nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU())))
        self.policy = nn.Sequential(nn.Conv2d(64, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(84, 7))
        self.value = nn.Sequential(nn.Conv2d(64, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(42, 32), nn.ReLU())
        self.last = nn.Linear(32, 1)

    def forward(self, x):
        """Returns logits and values."""
        h = self.body(x)
        return self.policy(h), self.last(self.value(h)).tanh().squeeze(1)


class MLP(nn.Module):
    """Three layers of 128 and two heads."""

    def __init__(self) -> None:
        super().__init__()
        layers = [layer for n in (18, 128, 128) for layer in (nn.Linear(n, 128), nn.ReLU())]
        self.body = nn.Sequential(nn.Flatten(), *layers)
        self.policy, self.value = nn.Linear(128, 9), nn.Linear(128, 1)

    def forward(self, x):
        """Returns logits and values."""
        h = self.body(x)
        return self.policy(h), self.value(h).tanh().squeeze(1)


def ours(game, evaluator, rule) -> Callable[[], int]:
    state = opening(game)
    search = Search(game, evaluator, simulations=SIMULATIONS, rule=rule)

    def run() -> int:
        search(state, noise=True)
        return GAMES * SIMULATIONS

    return run


def without_numba(game, evaluator, rule) -> Callable[[], int]:
    compiled = fast.available

    def plain() -> int:
        fast.available = lambda: False
        try:
            return run()
        finally:
            fast.available = compiled

    fast.available = lambda: False
    run = ours(game, evaluator, rule)
    fast.available = compiled

    return plain


def network_alone(game, evaluator) -> Callable[[], int]:
    x = torch.from_numpy(game.observe(opening(game)))

    def run() -> int:
        with evaluator.evaluating():
            for _ in range(SIMULATIONS):
                evaluator(x)
        return GAMES * SIMULATIONS

    return run


def opening(game):
    state = game.init(GAMES)
    return game.step(state, np.arange(GAMES) % game.num_actions)


def mctx_pgx(name: str, policy: str | None) -> Callable[[], int]:
    """A search by `policy`; None: as many calls of its network, one after the other."""
    import jax
    import jax.numpy as jnp
    import mctx
    import pgx

    env = pgx.make(name)
    key = jax.random.PRNGKey(0)
    draw = lambda *shape: jax.random.normal(jax.random.PRNGKey(sum(shape)), shape) / np.sqrt(np.prod(shape[:-1]))  # noqa: E731
    if name == "tic_tac_toe":
        weights = [draw(18, 128), draw(128, 128), draw(128, 128), draw(128, 9), draw(128, 1)]

        def net(w, x):
            h = x.reshape(x.shape[0], -1).astype(jnp.float32)
            for layer in w[:3]:
                h = jax.nn.relu(h @ layer)
            return h @ w[3], jnp.tanh(h @ w[4])[:, 0]
    else:
        weights = [draw(3, 3, 2, 64), draw(3, 3, 64, 64), draw(3, 3, 64, 64), draw(1, 1, 64, 3), draw(84, 7)]
        weights += [draw(42, 32), draw(32, 1)]

        def net(w, x):
            conv = lambda h, k: jax.lax.conv_general_dilated(  # noqa: E731
                h, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            h = x.astype(jnp.float32)
            for kernel in w[:3]:
                h = jax.nn.relu(conv(h, kernel))
            h = jax.nn.relu(conv(h, w[3]))
            flat = lambda part: part.reshape(x.shape[0], -1)  # noqa: E731
            return flat(h[..., :2]) @ w[4], jnp.tanh(jax.nn.relu(flat(h[..., 2:]) @ w[5]) @ w[6])[:, 0]

    def recurrent(w, key, action, state):
        mover = state.current_player
        state = jax.vmap(env.step)(state, action)
        logits, value = net(w, state.observation)
        logits = jnp.where(state.legal_action_mask, logits, jnp.finfo(logits.dtype).min)
        reward = state.rewards[jnp.arange(GAMES), mover]
        discount = jnp.where(state.terminated, 0.0, -1.0)
        value = jnp.where(state.terminated, 0.0, value)
        return mctx.RecurrentFnOutput(reward=reward, discount=discount, prior_logits=logits, value=value), state

    @jax.jit
    def search(w, key, state):
        logits, value = net(w, state.observation)
        root = mctx.RootFnOutput(prior_logits=logits, value=value, embedding=state)
        return getattr(mctx, policy)(w, key, root, recurrent, SIMULATIONS, ~state.legal_action_mask).action

    @jax.jit
    def network(w, x):
        def again(_, found):  # each waits for the one before, as in a search
            return net(w, x + 0.0 * found[1][:, None, None, None])

        return jax.lax.fori_loop(1, SIMULATIONS, again, net(w, x))[1]

    state = jax.vmap(env.init)(jax.random.split(key, GAMES))
    state = jax.vmap(env.step)(state, jnp.arange(GAMES) % env.num_actions)

    def run() -> int:
        asked = network(weights, state.observation) if policy is None else search(weights, key, state)
        asked.block_until_ready()
        return GAMES * SIMULATIONS

    return run


def open_spiel(name: str, net: nn.Module) -> Callable[[], int]:
    """OpenSpiel's Python search: one node object, and one position for the network, at a time; one game of the 64."""
    import pyspiel
    from open_spiel.python.algorithms import mcts

    rules = pyspiel.load_game(name)
    shape = (2, 6, 7) if name == "connect_four" else (2, 3, 3)

    class Evaluator:
        def ask(self, state):
            planes = np.array(state.observation_tensor(), np.float32).reshape(3, *shape[1:])[:2]
            with torch.inference_mode():
                return net(torch.from_numpy(planes)[None])

        def evaluate(self, state):
            value = float(self.ask(state)[1])
            return np.array([value, -value])

        def prior(self, state):
            logits = self.ask(state)[0][0].softmax(0).tolist()
            return [(action, logits[action]) for action in state.legal_actions()]

    bot = mcts.MCTSBot(rules, 1.25, SIMULATIONS, Evaluator(), child_selection_fn=mcts.SearchNode.puct_value)
    state = rules.new_initial_state()

    def run() -> int:
        bot.mcts_search(state)
        return SIMULATIONS

    return run


def pipeline(seconds: float) -> None:
    """Prints games per second of self-play as training gets them: workers, buffer, batches at 4 draws a position."""
    game = TicTacToe()
    print(f"\ntic-tac-toe self-play, {GAMES} games a worker, {SIMULATIONS} simulations: games/s as a trainer gets them")
    for workers in (0, 1, 2):
        source = SelfPlay(game, MLP(), Play(games=GAMES, simulations=SIMULATIONS, rule=Puct()))
        with Datagen(source).loader(256, n_workers=workers, replay_ratio=4.0) as loader:
            for _ in range(20):  # workers are up, kernels are loaded
                next(loader)
            before, start = loader.stats()["episodes"], time.perf_counter()
            while (passed := time.perf_counter() - start) < seconds:
                next(loader)
            print(f"  {workers} workers  {(loader.stats()['episodes'] - before) / passed:>8,.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("search", "pipeline"), default="search")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.what == "pipeline":
        return pipeline(arguments.seconds)
    if hasattr(os, "sched_setaffinity"):  # before JAX starts its threads
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for title, game, net, pgx_name in (
        ("Connect Four, 3 × conv3×3 of 64", ConnectFour(), Conv().eval(), "connect_four"),
        ("tic-tac-toe, MLP 3 × 128", TicTacToe(), MLP().eval(), "tic_tac_toe"),
    ):
        evaluator = NetEvaluator.tuned(net, torch.from_numpy(game.observe(opening(game))), seconds=0.5)
        print(f"\n{title}: chunks of {evaluator.chunk}, channels_last {evaluator.channels_last}")
        engines = {
            "network alone": network_alone(game, evaluator),
            "ours, Gumbel": ours(game, evaluator, Gumbel()),
            "ours, PUCT": ours(game, evaluator, Puct()),
            "ours, Gumbel, without numba": without_numba(game, evaluator, Gumbel()),
        }
        if not arguments.no_peers:
            for policy in ("gumbel_muzero_policy", "muzero_policy", None):
                try:
                    engines[f"mctx + pgx, {policy or 'its network alone'}"] = mctx_pgx(pgx_name, policy)
                except ImportError as error:
                    print(f"skipped mctx + pgx: {error.name} is not installed")
                    break
            try:
                engines["OpenSpiel, Python MCTS"] = open_spiel(pgx_name, net)
            except ImportError as error:
                print(f"skipped OpenSpiel: {error.name} is not installed")
        best = dict.fromkeys(engines, 0.0)
        for engine in engines.values():
            engine()  # compiles
        for _ in range(arguments.rounds):
            for name, engine in engines.items():
                cpu, count = time.process_time(), 0
                start = time.perf_counter()
                while time.perf_counter() - start < 0.5:
                    count += engine()
                best[name] = max(best[name], count / (time.process_time() - cpu))
        print(f"simulations per CPU-second, {GAMES} games, {SIMULATIONS} simulations")
        for name, rate in best.items():
            print(f"  {name:38} {rate:>10,.0f}  {rate / best['network alone']:5.0%} of the network alone")


if __name__ == "__main__":
    main()
