"""A client in a page, and the values of its callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from playwright.async_api import Page

from tests.support.nodes import KEY, RunningNode
from tests.support.waiting import soon

# The page keeps the arguments of all callbacks. A test that brings tokens exposes `nextToken`.
NEW_CLIENT = """(options) => {
  window.states = [];
  window.errors = [];
  window.gaps = [];
  window.got = [];
  window.client = new wsqueue.WsqueueClient({
    ...options,
    token: window.nextToken ?? options.token,
    onState: (state) => states.push(state),
    onError: (error) => errors.push(`${error.name} ${error.code}`),
  });
  window.subscribe = (topic, options = {}) => client.subscribe(
    topic, (message) => got.push(message), { onGap: (gap) => gaps.push(gap), ...options });
  window.shown = (data) => (typeof data === 'string' ? data : { bytes: Array.from(data) });
  window.thrown = (act) => {
    try {
      act();
      return 'nothing';
    } catch (error) {
      return String(error);
    }
  };
  // The outcomes of promises, in the order in which they were kept.
  window.promises = [];
  window.settled = [];
  window.keep = (promise) => {
    promises.push(promise);
    const index = promises.length - 1;
    const told = (text) => { settled[index] = text; };
    promise.then(() => told('done'), ({ name, message }) => told(`${name} ${message}`));
  };
  window.outcome = (promise) => promise.then(() => "done", (error) => `${error.name} ${error.code}`);
}"""


async def new_client(
    page: Page, consumers: Sequence[RunningNode | str], producers: Sequence[RunningNode | str], **options: Any
) -> None:
    addresses = {
        "consumers": [str(getattr(node, "address", node)) for node in consumers],
        "producers": [str(getattr(node, "address", node)) for node in producers],
    }
    secret = {} if "token" in options else {"psk": KEY}
    await page.evaluate(NEW_CLIENT, {**secret, **addresses, **options})


async def js(page: Page, script: str, argument: Any = None) -> Any:
    """Return the value of a script in the page, within the usual time."""
    async with soon():
        return await page.evaluate(script, argument)


async def data(page: Page, count: int) -> list[str | bytes]:
    """Return the data of the received messages, once there are `count`."""
    await page.wait_for_function("(count) => got.length >= count", arg=count)
    received = await js(page, "got.map((message) => shown(message.data))")
    return [one if isinstance(one, str) else bytes(one["bytes"]) for one in received]
