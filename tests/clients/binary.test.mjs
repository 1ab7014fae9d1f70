// Bytes: phoenix.js pushes an ArrayBuffer and receives one, in generations that can; entry 127 of the protocol document.

import assert from "node:assert/strict"
import { after, before, describe, test } from "node:test"
import { Client, CLIENTS, LATEST } from "./support/client.mjs"
import { basic, Herald, TEST_APP } from "./support/herald.mjs"
import { Inbox } from "./support/wait.mjs"

const TOPIC = "public:test-app"
const ROOM = `${TOPIC}:room`

/** The generations that speak binary: the first release line that does, and the latest. */
const BINARY = [{ label: "phoenix 1.5.14", module: "phoenix-1.5", vsn: "2.0.0" }, LATEST]

/**
 * Those that are sent none. Generations from 1.3 to 1.5.6 are not among them over WebSocket: they speak version 2, so
 * nothing tells the server that they cannot read bytes, and every frame of them is an error in their page's console.
 */
const TEXT_ONLY = CLIENTS.filter(({ vsn, transport }) => vsn === "1.0.0" || transport === "long-poll")

/** phoenix.js recognises bytes by their constructor, so its browser must have the one that `ws` uses. */
const page = { ArrayBuffer, Uint8Array, DataView, TextEncoder, TextDecoder }

/** Every byte there is. */
const BYTES = Uint8Array.from({ length: 256 }, (_, n) => n)

let herald
before(async () => {
  herald = await Herald.start()
})
after(() => herald?.close())

for (const generation of BINARY) {
  describe(generation.label, () => {
    test("pushes bytes: every generation that can hears them, the sender too", async t => {
      const others = await Promise.all(BINARY.map(other => listen(t, other, TOPIC)))
      const sender = await listen(t, generation, TOPIC)

      sender.channel.push("bin", BYTES.buffer)

      for (const { inbox } of [sender, ...others]) {
        assert.deepEqual(await inbox.take(), { event: "bin", bytes: [...BYTES] })
      }
    })

    test("pushes no bytes at all", async t => {
      const { channel, inbox } = await listen(t, generation, TOPIC)
      channel.push("bin", new ArrayBuffer(0))
      assert.deepEqual(await inbox.take(), { event: "bin", bytes: [] })
    })

    test("reads what a trigger sends, whole and field by field", async t => {
      const { inbox, wire } = await listen(t, generation, TOPIC)

      assert.deepEqual(await trigger({ topic: "room", payload_base64: base64(BYTES) }), { skipped: 0 })

      assert.deepEqual(await inbox.take(), { event: "room:bin", bytes: [...BYTES] })
      const { topic, event, ref, join_ref } = await wire.take()
      assert.deepEqual({ topic, event, ref, join_ref }, { topic: TOPIC, event: "room:bin", ref: null, join_ref: null })
    })

    test("is told in text that it may not push there", async t => {
      const { channel } = await listen(t, generation, TOPIC)
      const replies = new Inbox("the reply")
      channel.push("#nope", BYTES.buffer).receive("error", response => replies.put({ ...response }))
      assert.deepEqual(await replies.take(), { reason: "invalid event" })
    })

    test("shares a topic with clients that cannot be sent bytes, in one order", async t => {
      const { channel, inbox } = await listen(t, generation, ROOM)
      const clients = TEXT_ONLY.map(other => connect(t, other))
      const old = await Promise.all(clients.map(client => client.joined(ROOM, { events: ["bin", "msg"] })))

      assert.deepEqual(await trigger({ topic: "room", payload_base64: base64(BYTES) }), { skipped: old.length })
      channel.push("bin", BYTES.buffer)
      assert.deepEqual(await inbox.take(), { event: "bin", bytes: [...BYTES] })
      assert.deepEqual(await inbox.take(), { event: "bin", bytes: [...BYTES] })
      assert.deepEqual(await trigger({ topic: "room", event: "msg", payload: '{"n":1}' }), {})

      for (const { inbox } of old) assert.deepEqual(await inbox.take(), { event: "msg", payload: { n: 1 } })
      // A long-poll session outlives its client for a while, and would be counted by the next test.
      await Promise.all(clients.map((client, nth) => client.leave(old[nth].channel)))
    })
  })
}

test(`${LATEST.label} measures names in bytes of UTF-8, as the server does`, async t => {
  const topic = `${TOPIC}:café ☕`
  const { channel, inbox } = await listen(t, LATEST, topic, ["naïve"])
  channel.push("naïve", BYTES.buffer)
  assert.deepEqual(await inbox.take(), { event: "naïve", bytes: [...BYTES] })
})

test(`${LATEST.label} pushes bytes over long-poll, too`, async t => {
  const { inbox } = await listen(t, LATEST, TOPIC)
  const { channel } = await connect(t, { ...LATEST, transport: "long-poll" }).joined(TOPIC, { events: [] })
  channel.push("bin", BYTES.buffer)
  assert.deepEqual(await inbox.take(), { event: "bin", bytes: [...BYTES] })
})

/** A client of one generation that goes when its test does. */
function connect(t, generation) {
  const client = new Client(generation, herald, { page })
  t.after(() => client.disconnect())
  return client
}

/** Joins a topic; `inbox` gets what arrives there as bytes, `wire` every message but replies. */
async function listen(t, generation, topic, events = ["bin", "room:bin"]) {
  const client = connect(t, generation)
  const wire = new Inbox(`${generation.label}, the wire`)
  client.socket.onMessage(message => message.event === "phx_reply" || wire.put(message))
  const { channel } = await client.joined(topic, { events: [] })
  const inbox = new Inbox(`${generation.label}, ${topic}`)
  for (const event of events) {
    channel.on(event, payload => {
      assert.ok(payload instanceof ArrayBuffer, `${event} brings ${payload}`)
      inbox.put({ event, bytes: [...new Uint8Array(payload)] })
    })
  }
  return { channel, inbox, wire }
}

/** Triggers an event with the app's key and secret, and returns the answer. */
async function trigger(fields) {
  const body = new URLSearchParams({ event: "bin", ...fields })
  const authorization = basic(TEST_APP.key, TEST_APP.secret)
  const response = await herald.post(`/api/apps/${TEST_APP.slug}/events`, body, authorization)
  assert.equal(response.status, 200)
  return response.json()
}

function base64(bytes) {
  return Buffer.from(bytes).toString("base64")
}
