// How every client recovers what it has missed, with the lines that docs/history.md gives to pages.

import assert from "node:assert/strict"
import { STAYS_AWAY } from "../support/generations.mjs"
import { blocksOf } from "../support/markdown.mjs"
import { step } from "../support/stage.mjs"
import { RESTART_MS } from "./ending.mjs"

/** The topic in the lines of the document. Each step replaces it with its own. */
const PRINTED_TOPIC = "private:shop:room-1"

const LINES = await linesForAPage()

export const RECOVERING = [
  step("recovers what it missed while its connection was cut", {
    not: STAYS_AWAY,
    async run(stage) {
      const proxy = await stage.proxy(stage.herald)
      const page = await joined(stage, "cut", { to: proxy })
      await publish(stage, "cut", [1])
      await hears(page, [1])

      await loses(page, proxy)
      await publish(stage, "cut", [2, 3])
      proxy.comeBack()

      await hears(page, [2, 3])
      await publish(stage, "cut", [4])
      await hears(page, [4])
      await page.client.fence()
      assert.deepEqual([page.inbox.rest(), page.reloads.rest()], [[], []])
    },
  }),

  step("receives what was published between the rendering of its page and its join", {
    async run(stage) {
      const printed = { topic: "handoff", scope: "private", payload: "{}", position: true }
      const { position } = await stage.herald.triggerRaw(printed, stage.app)
      await publish(stage, "handoff", [1, 2])
      const page = await joined(stage, "handoff", { position })
      await hears(page, [1, 2])
      await publish(stage, "handoff", [3])
      await hears(page, [3])
      assert.deepEqual([page.inbox.rest(), page.reloads.rest()], [[], []])
    },
  }),

  step("is told that a gap cannot be closed, and hears what follows", {
    async run(stage) {
      const ofAnotherScope = await stage.herald.triggerRaw({ topic: "gap", payload: "{}", position: true }, stage.app)
      await publish(stage, "gap", [1])
      const page = await joined(stage, "gap", ofAnotherScope)
      await page.reloads.take("the call to reload")
      await publish(stage, "gap", [2])
      await hears(page, [2])
      assert.deepEqual([page.inbox.rest(), page.reloads.rest()], [[], []])
    },
  }),

  missesOne("recovers what it missed before an orderly restart of the server", "SIGTERM", page => hears(page, [1])),
  missesOne("is told that it missed events after a crash of the server", "SIGKILL", page => page.reloads.take("the call to reload")),
]

/** A step in which all clients miss event 1 before their server ends by `signal` and starts again, and then do as `learns` says. */
function missesOne(title, signal, learns) {
  const missed = ({ client }, n) => ({ scope: "private", topic: `${client.id}, ${signal}`, payload: { n } })
  return step(title, {
    isApart: true,
    not: STAYS_AWAY,
    async arrange(stage) {
      const proxy = await stage.proxy(stage.restarting)
      const page = await joined(stage, missed(stage).topic, { to: proxy, outageMs: RESTART_MS, ...ofTestApp(stage) })
      return { proxy, page }
    },

    // The longer a client is without a connection, the longer are its pauses between retries, so all clients lose
    // theirs at once.
    async act(stages) {
      const [{ restarting }] = stages
      await Promise.all(stages.map(async stage => {
        await loses(stage.arranged.page, stage.arranged.proxy)
        await restarting.trigger(missed(stage, 1))
      }))
      await restarting.stop(signal)
      await restarting.start()
    },

    async run(stage) {
      const { proxy, page } = stage.arranged
      proxy.comeBack()
      await learns(page)
      await stage.restarting.trigger(missed(stage, 2))
      await hears(page, [2])
      assert.deepEqual([page.inbox.rest(), page.reloads.rest()], [[], []])
    },
  })
}

/** The lines of docs/history.md that a page of any version can contain. */
async function linesForAPage() {
  const blocks = (await blocksOf("docs/history.md")).filter(({ kind }) => kind === "js page")
  assert.equal(blocks.length, 1, "docs/history.md has the lines for a page once")
  assert.ok(blocks[0].code.includes(PRINTED_TOPIC))
  return blocks[0].code
}

/** A page with these lines that has joined a channel of the stage's app. */
async function joined(stage, channel, { to, outageMs, position, slug = stage.app.slug, token = stage.token({ listen: ["private:*"] }) }) {
  const topic = `private:${slug}:${channel}`
  const client = stage.connect({ to, outageMs })
  const page = client.paste(LINES.replaceAll(PRINTED_TOPIC, topic), topic, { event: "msg", token, position })
  await client.onWire({ topic, event: "phx_reply" }, "the reply to the join")
  return page
}

/** Cuts the connection of a page, and has its retries wait until the proxy comes back. */
async function loses({ client }, proxy) {
  proxy.goDown()
  await client.lost.take("the loss of the connection")
  proxy.keepWaiting()
}

/** The app that every server has. */
function ofTestApp(stage) {
  return { slug: "test-app", token: stage.tokenOfTestApp() }
}

async function publish(stage, topic, numbers) {
  for (const n of numbers) await stage.trigger({ scope: "private", topic, payload: { n } })
}

/** Takes one event for each of these numbers, in this order and each with its position. */
async function hears({ inbox }, numbers) {
  for (const n of numbers) {
    const { payload, position } = await inbox.take(`event ${n}`)
    assert.deepEqual(payload, { n })
    assert.match(position, /^[\w-]{22}:\d+$/)
  }
}
