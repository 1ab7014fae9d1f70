// Every generation of phoenix.js against a running Herald, over both transports, each through the same life.

import assert from "node:assert/strict"
import { after, before, describe, test } from "node:test"
import { Client, CLIENTS, push } from "./support/client.mjs"
import { Herald, TEST_APP } from "./support/herald.mjs"
import { mint } from "./support/token.mjs"

const PUBLIC = "public:test-app"
const PRIVATE = "private:test-app"

let herald
before(async () => {
  herald = await Herald.start()
})
after(() => herald?.close())

for (const generation of CLIENTS) {
  describe(generation.label, () => {
    test("connects", async t => {
      const client = connect(t, generation)
      await client.opened.take()
    })

    test("joins a public topic and is answered {}", async t => {
      const { replies } = connect(t, generation).join(PUBLIC)
      assert.deepEqual(await replies.take(), { status: "ok", response: {} })
    })

    test("joins a private topic with a token that lists it", async t => {
      const payload = { guardian_token: token({ listen: ["private:*"] }) }
      const { replies } = connect(t, generation).join(PRIVATE, { payload })
      assert.deepEqual(await replies.take(), { status: "ok", response: { message: "Joined" } })
    })

    test("joins a private topic with a token in the socket's params", async t => {
      const params = { guardian_token: token({ listen: ["private:*"] }) }
      const { replies } = connect(t, generation, { params }).join(PRIVATE)
      assert.deepEqual(await replies.take(), { status: "ok", response: { message: "Joined" } })
    })

    const denials = [
      { label: "no token", payload: {}, response: "authentication_required" },
      { label: "a token for other topics", payload: { guardian_token: token({ listen: ["deploys:*"] }) }, response: "authentication_required" },
      { label: "a forged token", payload: { guardian_token: mint({ listen: ["private:*"] }, "not the secret") }, response: { error: "invalid_token" } },
      { label: "an expired token", payload: { guardian_token: token({ listen: ["private:*"], exp: 1 }) }, response: { error: "token_expired" } },
      { label: "an unknown app", topic: "public:no-such-app", payload: {}, response: { reason: "unmatched topic" } },
    ]
    for (const { label, topic = PRIVATE, payload, response } of denials) {
      test(`is denied a join with ${label}`, async t => {
        const { replies } = connect(t, generation).join(topic, { payload })
        assert.deepEqual(await replies.take(), { status: "error", response })
      })
    }

    test("pushes: every generation hears it, the sender too, and success has no reply", async t => {
      const payload = { name: generation.label, message: "naïve café ☕ <b>" }
      const everyone = await Promise.all(CLIENTS.map(other => connect(t, other).joined(PUBLIC)))
      const { channel, inbox } = await connect(t, generation).joined(PUBLIC)

      const reply = push(channel, "foo-topic:msg", payload)

      for (const heard of [inbox, ...everyone.map(other => other.inbox)]) {
        assert.deepEqual(await heard.take(), { event: "foo-topic:msg", payload })
      }
      // Replies come in order: had there been one to the push, it were here before this refusal.
      const refused = push(channel, "#nope", payload)
      assert.deepEqual(await refused.take(), { status: "error", response: { reason: "invalid event" } })
      assert.deepEqual(reply.rest(), [])
    })

    test("pushes to everyone of the app", async t => {
      const { channel, inbox } = await connect(t, generation).joined(PUBLIC)
      push(channel, "msg", { message: "all" })
      assert.deepEqual(await inbox.take(), { event: "msg", payload: { message: "all" } })
    })

    test("pushes without permission and is answered error {}", async t => {
      const payload = { guardian_token: token({ listen: ["private:*"], publish: ["private:elsewhere"] }) }
      const { channel, inbox } = await connect(t, generation).joined(PRIVATE, { payload })

      const reply = push(channel, "foo-topic:msg", { message: "let me" })

      assert.deepEqual(await reply.take(), { status: "error", response: {} })
      assert.deepEqual(inbox.rest(), [])
    })

    test("pushes to a private channel with a publish claim", async t => {
      const payload = { guardian_token: token({ listen: ["private:*"], publish: ["private:*"] }) }
      const { channel, inbox } = await connect(t, generation).joined(`${PRIVATE}:room:1`, { payload })
      push(channel, "msg", { message: "between us" })
      assert.deepEqual(await inbox.take(), { event: "msg", payload: { message: "between us" } })
    })

    test("receives what HTTP triggers: for its channel, and for everyone", async t => {
      const { inbox } = await connect(t, generation).joined(PUBLIC)

      await herald.trigger({ topic: "foo-topic", payload: { message: "one channel" } })
      await herald.trigger({ topic: "other-topic", payload: { message: "not listened to" } })
      await herald.trigger({ topic: "#general", payload: { message: "all channels" } })

      assert.deepEqual(await inbox.take(), { event: "foo-topic:msg", payload: { message: "one channel" } })
      assert.deepEqual(await inbox.take(), { event: "msg", payload: { message: "all channels" } })
    })

    test("leaves, and is sent no more of that topic", async t => {
      const client = connect(t, generation)
      const { channel } = await client.joined(PUBLIC)
      const { inbox } = await client.joined(`${PUBLIC}:foo-topic`)

      await client.leave(channel)
      client.wire.length = 0
      await herald.trigger({ topic: "foo-topic", payload: { n: 1 } })

      assert.deepEqual(await inbox.take(), { event: "msg", payload: { n: 1 } })
      // A second publication arrives after anything that the first could still have caused.
      await herald.trigger({ topic: "foo-topic", payload: { n: 2 } })
      assert.deepEqual(await inbox.take(), { event: "msg", payload: { n: 2 } })
      assert.deepEqual(client.wire.filter(({ topic }) => topic === PUBLIC), [])
    })

    test("joins again what it left", async t => {
      const client = connect(t, generation)
      const { channel } = await client.joined(PUBLIC)
      await client.leave(channel)
      const { inbox } = await client.joined(PUBLIC)
      await herald.trigger({ topic: "foo-topic", payload: { again: true } })
      assert.deepEqual(await inbox.take(), { event: "foo-topic:msg", payload: { again: true } })
    })
  })
}

describe("a session that the server ends", () => {
  test("every generation comes back by itself and is judged anew", async t => {
    const app = await herald.createApp({ name: "coming-back", client_events: "all" })
    const clients = CLIENTS.map(generation => connect(t, generation))
    const joins = await Promise.all(clients.map(client => client.joined("public:coming-back")))

    await herald.updateApp("coming-back", { active: false })
    await Promise.all(clients.map(client => client.lost.take("the loss of the connection")))
    await herald.updateApp("coming-back", { active: true })

    // Who was back before the app was has been refused, and tries again.
    const rejoined = async ({ replies }) => {
      while ((await replies.take("the reply to the rejoin")).status !== "ok");
    }
    await Promise.all(joins.map(rejoined))
    await herald.trigger({ topic: "foo-topic", payload: { back: true } }, app)
    for (const { inbox } of joins) {
      assert.deepEqual(await inbox.take(), { event: "foo-topic:msg", payload: { back: true } })
    }
  })
})

describe("a server that goes away and comes back", () => {
  const ends = [
    { label: "stopped in an orderly way", signal: "SIGTERM" },
    { label: "killed", signal: "SIGKILL" },
  ]
  for (const { label, signal } of ends) {
    test(`every generation comes back by itself when it was ${label}`, async t => {
      const clients = CLIENTS.map(generation => connect(t, generation))
      const joins = await Promise.all(clients.map(client => client.joined(PUBLIC)))

      await herald.stop(signal)
      await Promise.all(clients.map(client => client.lost.take("the loss of the connection")))
      await herald.start()
      const rejoins = await Promise.all(joins.map(({ replies }) => replies.take("the reply to the rejoin")))
      await herald.trigger({ topic: "foo-topic", payload: { after: signal } })

      for (const rejoin of rejoins) assert.deepEqual(rejoin, { status: "ok", response: {} })
      for (const { inbox } of joins) {
        assert.deepEqual(await inbox.take(), { event: "foo-topic:msg", payload: { after: signal } })
      }
    })
  }
})

/** A client of one generation that goes when its test does. */
function connect(t, generation, options) {
  const client = new Client(generation, herald, options)
  t.after(() => client.disconnect())
  return client
}

function token(claims) {
  return mint({ sub: { id: 1 }, ...claims }, TEST_APP.secret)
}
