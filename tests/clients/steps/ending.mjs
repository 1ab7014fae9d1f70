// How sessions end, and how every client reconnects.

import assert from "node:assert/strict"
import { STAYS_AWAY } from "../support/generations.mjs"
import { step } from "../support/stage.mjs"
import { eventually } from "../support/wait.mjs"

/** The close codes of a WebSocket. A long-poll client only learns that it should reconnect. */
const GOING_AWAY = 1001
const ABNORMAL = 1006
const INTERNAL_ERROR = 1011
const SERVICE_RESTART = 1012

export const ENDING = [
  restarts("e160_e176 survives an orderly restart", "SIGTERM", SERVICE_RESTART),
  restarts("e160_e176 survives a crash", "SIGKILL", ABNORMAL),

  step("e160_e176 is disconnected by its token's subject", {
    not: STAYS_AWAY,
    async run(stage) {
      const { slug } = stage.app
      const bearing = sub => ({ payload: { guardian_token: stage.token({ sub, listen: ["private:*"] }) }, events: ["msg"] })
      const meant = await stage.connect().joined(`private:${slug}:room`, bearing("meant"))
      const spared = await stage.connect().joined(`private:${slug}:room`, bearing("spared"))

      await stage.herald.disconnect({ sub: "meant" }, stage.app)

      await comesBack(stage, meant, GOING_AWAY)
      await stage.trigger({ scope: "private", topic: "room", payload: { n: 1 } })
      for (const { inbox } of [meant, spared]) assert.deepEqual(await inbox.take(), { event: "msg", payload: { n: 1 } })
      assert.deepEqual(spared.client.lost.rest(), [])
    },
  }),

  step("e160_e176 is disconnected by its topic", {
    not: STAYS_AWAY,
    async run(stage) {
      const topic = `public:${stage.app.slug}`
      const meant = await stage.connect().joined(`${topic}:meant`)
      const spared = await stage.connect().joined(`${topic}:spared`)

      await stage.herald.disconnect({ topic: `${topic}:meant` }, stage.app)

      await comesBack(stage, meant, GOING_AWAY)
      await stage.trigger({ topic: "meant", payload: { n: 1 } })
      assert.deepEqual(await meant.inbox.take(), { event: "msg", payload: { n: 1 } })
      await spared.client.fence()
      assert.deepEqual(spared.client.lost.rest(), [])
    },
  }),

  step("e182 loses one channel of several, and joins it again", {
    async run(stage) {
      const topic = `public:${stage.app.slug}:one`
      const client = stage.connect()
      const lost = await client.joined(topic)
      const kept = await client.joined("public:test-app")

      await stage.herald.disconnect({ topic }, stage.app)

      await lost.errored.take("phx_error")
      assert.deepEqual(await rejoined(lost.replies), { status: "ok", response: {} })
      await stage.trigger({ topic: "one", payload: { n: 1 } })
      assert.deepEqual(await lost.inbox.take(), { event: "msg", payload: { n: 1 } })
      await client.fence()
      assert.deepEqual([lost.errored.rest(), lost.closed.rest()], [[], []])
      assert.deepEqual([kept.errored.rest(), kept.replies.rest(), client.lost.rest()], [[], [], []])
    },
  }),

  step("e181 accepts that the server closes a channel for good", {
    not: STAYS_AWAY,
    async run(stage) {
      const client = stage.connect()
      const closed = await client.joined(`public:${stage.app.slug}:closing`)
      const kept = await client.joined(`public:${stage.app.slug}:kept`)

      await client.slip({ topic: closed.topic, event: "phx_leave" })
      await closed.closed.take("phx_close")

      await stage.herald.disconnect({ topic: kept.topic }, stage.app)
      await client.lost.take("the loss of the connection")
      // The client joins its channels again at one moment and in their order, so a join of the closed channel would be
      // sent before this one.
      assert.deepEqual(await rejoined(kept.replies), { status: "ok", response: {} })
      await client.fence()
      assert.deepEqual([closed.closed.rest(), closed.errored.rest(), closed.replies.rest()], [[], [], []])
    },
  }),

  step("e160 is refused while its app is inactive", {
    not: STAYS_AWAY,
    async run(stage) {
      const { slug } = stage.app
      const joined = await stage.connect().joined(`public:${slug}`)

      await stage.herald.updateApp(slug, { active: false })
      await joined.client.lost.take("the loss of the connection")
      await stage.herald.updateApp(slug, { active: true })

      // A client that returns before the app is active is refused, and retries.
      while ((await joined.replies.take("the reply to the rejoin")).status !== "ok");
      await stage.trigger({ topic: "foo-topic", payload: { back: true } })
      assert.deepEqual(await joined.inbox.take(), { event: "foo-topic:msg", payload: { back: true } })
    },
  }),

  step("e176 reconnects after it sent something that is not a message", {
    not: STAYS_AWAY,
    async run(stage) {
      const joined = await stage.connect().joined(`public:${stage.app.slug}`)
      await joined.client.do("babble")
      await comesBack(stage, joined, INTERNAL_ERROR)
      await stage.trigger({ topic: "foo-topic", payload: { n: 1 } })
      assert.deepEqual(await joined.inbox.take(), { event: "foo-topic:msg", payload: { n: 1 } })
    },
  }),

  step("e176 reconnects after its connection was cut", {
    not: STAYS_AWAY,
    async run(stage) {
      const proxy = await stage.proxy(stage.herald)
      const joined = await stage.connect({ to: proxy }).joined(`public:${stage.app.slug}`)
      // A client that has just received its events and not yet asked for more has no request that could break.
      await eventually(() => proxy.isAsked || stage.overWebSocket, "a request that waits")
      proxy.cut()
      // Chromium repeats a request whose connection broke by itself, and the client never learns of it.
      const isHidden = stage.client.place === "Chromium" && !stage.overWebSocket
      if (!isHidden) await comesBack(stage, joined, ABNORMAL)
      await hears(joined, "foo-topic:msg", () => stage.trigger({ topic: "foo-topic", payload: { n: 1 } }))
    },
  }),

  step("e160_e176 reconnects after it was idle for too long", {
    isApart: true,
    not: STAYS_AWAY,
    async run(stage) {
      const topic = `public:test-app:${stage.client.id}`
      const proxy = await stage.proxy(stage.idling)
      const joined = await stage.connect({ to: proxy }).joined(topic)
      if (!stage.overWebSocket) {
        // A client over long-poll polls all the time, so the proxy has to hold its requests back.
        proxy.requests.hold()
        await stage.idling.hasSubscribers(0, { scope: "public", channel: stage.client.id })
        proxy.requests.release()
      }
      await comesBack(stage, joined, GOING_AWAY)
      await hears(joined, "msg", () => stage.idling.trigger({ topic: stage.client.id, payload: { n: 1 } }))
    },
  }),
]

/** A time that is long enough for an orderly restart of a server with many sessions, also on a slow machine. */
export const RESTART_MS = 4000

/** A step for all clients at once, on a server that stops and starts again. */
function restarts(title, signal, code) {
  return step(title, {
    isApart: true,
    not: STAYS_AWAY,
    arrange(stage) {
      return stage.connect({ to: stage.restarting, outageMs: RESTART_MS }).joined(`public:test-app:${stage.client.id}`)
    },

    async act([{ restarting }]) {
      await restarting.stop(signal)
      await restarting.start()
    },

    async run(stage) {
      const { client, inbox } = stage.arranged
      await comesBack(stage, stage.arranged, code)
      await stage.restarting.trigger({ topic: stage.client.id, payload: { after: signal } })
      assert.deepEqual(await inbox.take(), { event: "msg", payload: { after: signal } })
      await client.fence()
      assert.deepEqual(inbox.rest(), [])
    },
  })
}

/** Waits until the client has noticed that its session has ended, and has joined again. */
async function comesBack(stage, { client, replies, topic }, code) {
  const told = await client.lost.take("the loss of the connection")
  if (stage.overWebSocket) assert.equal(told, code)
  const response = topic.startsWith("public:") ? {} : { message: "Joined" }
  assert.deepEqual(await rejoined(replies), { status: "ok", response })
}

/**
 * Waits for the reply to a rejoin. A client that loses its connection again before the reply reaches its timeout, and
 * retries.
 */
export async function rejoined(replies) {
  let reply
  do reply = await replies.take("the reply to the rejoin")
  while (reply.status === "timeout")
  return reply
}

/** Publishes until the client receives the event, because its connection may just have been lost or be idle again. */
async function hears({ inbox }, event, publish) {
  const isHeard = async () => {
    await publish()
    return !inbox.isEmpty
  }
  await eventually(isHeard, `an event at ${inbox.name}`)
  assert.deepEqual(await inbox.take(), { event, payload: { n: 1 } })
}
