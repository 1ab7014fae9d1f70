// Connecting, joining, being denied, joining twice, leaving.

import assert from "node:assert/strict"
import { LATEST } from "../support/generations.mjs"
import { step } from "../support/stage.mjs"
import { mint } from "../support/token.mjs"

/** The number of denials, the first one included, for which the step waits if a client retries. */
const DENIALS = 3

/** The timeout of a client for the reply to a join, where it can be set. */
const TIMEOUT_MS = 500

export const JOINING = [
  step("e158_e159_e172 connects", {
    async run(stage) {
      const client = stage.connect()
      assert.equal(await client.opened.take(), stage.client.transport)
      await client.fence()
      assert.deepEqual([client.opened.rest(), client.lost.rest()], [[], []])
    },
  }),

  step("e158_e159_e172 joins", {
    async run(stage) {
      const { slug } = stage.app
      const guardian_token = stage.token({ listen: ["private:*"] })
      const client = stage.connect()
      const inPublic = client.join(`public:${slug}`)
      const byPayload = client.join(`private:${slug}`, { payload: { guardian_token } })
      const byParams = stage.connect({ params: { guardian_token } }).join(`private:${slug}`)

      assert.deepEqual(await inPublic.replies.take(), { status: "ok", response: {} })
      assert.deepEqual(await byPayload.replies.take(), { status: "ok", response: { message: "Joined" } })
      assert.deepEqual(await byParams.replies.take(), { status: "ok", response: { message: "Joined" } })
      await client.fence()
      assert.deepEqual([inPublic.replies.rest(), byPayload.replies.rest()], [[], []])
    },
  }),

  step("e158_e159 is denied a join", {
    async run(stage) {
      const client = stage.connect()
      const denied = denials(stage).map(({ topic, payload, response }) => ({ response, ...client.join(topic, { payload }) }))
      for (const { replies, response } of denied) {
        assert.deepEqual(await replies.take("the denial"), { status: "error", response })
      }
      await client.fence()
    },
  }),

  step("e179 is denied a join, and the page does not leave", {
    async run(stage) {
      const { rejoinsDenied } = stage.client
      const topic = `private:${stage.app.slug}`
      const denial = { status: "error", response: "authentication_required" }
      const client = stage.connect()
      const { replies } = client.join(topic)
      assert.deepEqual(await replies.take("the denial"), denial)

      // While a client that does not retry is watched, another one retries at the same pace: a retry would be noticed.
      const again = rejoinsDenied ? replies : stage.connectOther(LATEST).join(topic).replies
      for (let n = 1; n < DENIALS; n += 1) assert.deepEqual(await again.take("the next denial"), denial)
      if (!rejoinsDenied) await again.take("one more denial")

      await client.fence()
      assert.deepEqual(client.lost.rest(), [], "a denial does not cost the connection")
      if (!rejoinsDenied) assert.deepEqual(replies.rest(), [])
      return rejoinsDenied ? "✓ retries" : "✓ tries once"
    },
  }),

  step("e177 joins although the reply comes after its timeout", {
    async run(stage) {
      const { patient, vsn } = stage.client
      const proxy = await stage.proxy(stage.herald)
      const topic = `public:${stage.app.slug}:late`
      const client = stage.connect({ to: proxy, timeoutMs: TIMEOUT_MS })
      await client.fence()
      const other = stage.connectOther(LATEST, { to: proxy, timeoutMs: TIMEOUT_MS })
      await other.fence()

      proxy.answers.hold()
      const { replies, inbox, closed } = client.join(topic)
      const waiting = patient ? other.join(topic).replies : replies
      assert.equal((await waiting.take("the timeout of the join")).status, "timeout")
      proxy.answers.release()

      // On a slow machine the client can reach its timeout again.
      let reply
      do reply = await replies.take("the reply to a join")
      while (reply.status === "timeout")
      assert.equal(reply.status, "ok")
      if (vsn === "2.0.0") await client.onWire({ topic, event: "phx_close" }, "the end of the first join, which it has left")
      await stage.trigger({ topic: "late", payload: { n: 1 } })
      assert.deepEqual(await inbox.take(), { event: "msg", payload: { n: 1 } })
      await client.fence()
      assert.deepEqual([inbox.rest(), closed.rest(), client.lost.rest()], [[], [], []])
      return patient && "✓ it has no timeout"
    },
  }),

  step("e158_e159_e178 joins a topic twice", {
    async run(stage) {
      const { leavesDuplicates, vsn } = stage.client
      const topic = `public:${stage.app.slug}:twice`
      const client = stage.connect()
      const first = await client.joined(topic)
      const second = await client.joined(topic)
      if (vsn === "2.0.0") await first.closed.take("the close of the first join")

      await stage.trigger({ topic: "twice", payload: { n: 1 } })
      assert.deepEqual(await second.inbox.take(), { event: "msg", payload: { n: 1 } })
      assert.deepEqual(await second.push("#nope", {}).take(), { status: "error", response: { reason: "invalid event" } })

      const times = client.wire.filter(message => message.topic === topic && message.event === "msg").length
      assert.equal(times, 1, "the event is sent once, however many channel objects there are")
      assert.deepEqual([first.closed.rest(), second.closed.rest()], [[], []])
      assert.deepEqual([first.errored.rest(), second.errored.rest()], [[], []])
      assert.deepEqual(second.inbox.rest(), [])
      if (vsn === "1.0.0") return "✓ both stay joined"
      return leavesDuplicates ? "✓ the first leaves" : "✓ the first is closed"
    },
  }),

  step("e158_e159_e172 leaves", {
    async run(stage) {
      const topic = `public:${stage.app.slug}`
      const client = stage.connect()
      const left = await client.joined(topic)
      const kept = await client.joined(`${topic}:foo-topic`)

      await left.leave()
      client.wire = []
      await stage.trigger({ topic: "foo-topic", payload: { n: 1 } })

      assert.deepEqual(await kept.inbox.take(), { event: "msg", payload: { n: 1 } })
      // A second publication arrives after all messages that the first could have caused.
      await stage.trigger({ topic: "foo-topic", payload: { n: 2 } })
      assert.deepEqual(await kept.inbox.take(), { event: "msg", payload: { n: 2 } })
      assert.deepEqual(client.wire.filter(message => message.topic === topic), [])
      assert.deepEqual([left.closed.rest().length, left.errored.rest().length], [1, 0])
    },
  }),

  step("e158_e159 joins a topic that it left", {
    async run(stage) {
      const client = stage.connect()
      const left = await client.joined(`public:${stage.app.slug}`)
      await left.leave()
      const { inbox } = await client.joined(`public:${stage.app.slug}`)
      await stage.trigger({ topic: "foo-topic", payload: { again: true } })
      assert.deepEqual(await inbox.take(), { event: "foo-topic:msg", payload: { again: true } })
      assert.deepEqual(left.inbox.rest(), [])
    },
  }),
]

/** Joins that are denied, each of its own topic, and their replies. */
function denials(stage) {
  const topic = channel => `private:${stage.app.slug}:${channel}`
  const bearing = guardian_token => ({ payload: { guardian_token } })
  const anywhere = { listen: ["private:*"] }
  return [
    { topic: topic("no-token"), response: "authentication_required" },
    { topic: topic("other-topics"), ...bearing(stage.token({ listen: ["deploys:*"] })), response: "authentication_required" },
    { topic: topic("forged"), ...bearing(mint(anywhere, "not the secret")), response: { error: "invalid_token" } },
    { topic: topic("expired"), ...bearing(stage.token({ ...anywhere, exp: 1 })), response: { error: "token_expired" } },
    { topic: "public:no-such-app", response: { reason: "unmatched topic" } },
  ]
}
