"""Runs mctx (0.0.71, JAX in float64) on random trees and stores what it found in `mctx_trees.npz`.

Each tree is a random Markov decision process: tables of next states, rewards, discounts, logits and values. Run it
where jax and mctx are installed: `python tests/game/search/make_mctx_trees.py`. Tests read the file and need neither.
"""

from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import mctx  # noqa: E402
import numpy as np  # noqa: E402

STATES, ACTIONS = 24, 5
SIMULATIONS = (8, 16, 32, 50)
TREES_EACH = 50  # x 4 budgets = 200 trees, each searched by both rules


def main() -> None:
    rng = np.random.default_rng(0)
    stored = {}
    for simulations in SIMULATIONS:
        batch = TREES_EACH
        half = lambda x: x.astype(np.float16).astype(np.float64)  # noqa: E731
        tables = {
            "next": rng.integers(0, STATES, (batch, STATES, ACTIONS)).astype(np.int8),
            "reward": half(rng.normal(size=(batch, STATES, ACTIONS)) * 0.3),
            "discount": half(rng.choice([-1.0, 0.997, 0.0], p=[0.6, 0.3, 0.1], size=(batch, STATES, ACTIONS))),
            "logits": half(rng.normal(size=(batch, STATES, ACTIONS))),
            "value": half(rng.uniform(-1, 1, (batch, STATES))),
        }
        invalid = rng.random((batch, ACTIONS)) < 0.2
        invalid[invalid.all(axis=1)] = False
        found = {**_muzero(tables, invalid, simulations), **_gumbel(tables, invalid, simulations)}
        for key, value in {**tables, "invalid": invalid, **found}.items():
            small = key in ("reward", "discount", "logits", "value")
            stored[f"{simulations}_{key}"] = value.astype(np.float16) if small else value
    np.savez_compressed(Path(__file__).with_name("mctx_trees.npz"), **stored)


def _recurrent(tables):
    rows = jnp.arange(TREES_EACH)

    def step(params, key, action, embedding):
        following = tables["next"][rows, embedding, action].astype(jnp.int64)
        output = mctx.RecurrentFnOutput(
            reward=tables["reward"][rows, embedding, action],
            discount=tables["discount"][rows, embedding, action],
            prior_logits=tables["logits"][rows, following],
            value=tables["value"][rows, following],
        )
        return output, following

    return step


def _root(tables):
    return mctx.RootFnOutput(
        prior_logits=jnp.asarray(tables["logits"][:, 0]),
        value=jnp.asarray(tables["value"][:, 0]),
        embedding=jnp.zeros(TREES_EACH, jnp.int64),
    )


def _muzero(tables, invalid, simulations):
    tables = {key: jnp.asarray(value) for key, value in tables.items()}
    key = jax.random.PRNGKey(simulations)
    noise_key = jax.random.split(key, 3)[1]  # as mctx.muzero_policy splits it
    noise = jax.random.dirichlet(noise_key, jnp.full([ACTIONS], 0.3), shape=(TREES_EACH,))
    output = mctx.muzero_policy(
        None, key, _root(tables), _recurrent(tables), simulations, jnp.asarray(invalid), dirichlet_fraction=0.25
    )
    summary = output.search_tree.summary()
    return {
        "puct_noise": np.asarray(noise),
        "puct_visits": np.asarray(summary.visit_counts).astype(np.int8),
        "puct_policy": np.asarray(output.action_weights),
        "puct_value": np.asarray(summary.value),
    }


def _gumbel(tables, invalid, simulations):
    tables = {key: jnp.asarray(value) for key, value in tables.items()}
    output = mctx.gumbel_muzero_policy(
        None,
        jax.random.PRNGKey(simulations),
        _root(tables),
        _recurrent(tables),
        simulations,
        jnp.asarray(invalid),
        max_num_considered_actions=4,
    )
    summary = output.search_tree.summary()
    return {
        "gumbel_noise": np.asarray(output.search_tree.extra_data.root_gumbel),
        "gumbel_visits": np.asarray(summary.visit_counts).astype(np.int8),
        "gumbel_policy": np.asarray(output.action_weights),
        "gumbel_value": np.asarray(summary.value),
        "gumbel_action": np.asarray(output.action).astype(np.int8),
    }


if __name__ == "__main__":
    main()
