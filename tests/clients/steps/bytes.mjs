// Binary payloads: an ArrayBuffer that is pushed, and one that is received.

import assert from "node:assert/strict"
import { LATEST } from "../support/generations.mjs"
import { step } from "../support/stage.mjs"
import { rejoined } from "./ending.mjs"

/** All 256 byte values. */
const BYTES = Array.from({ length: 256 }, (_, n) => n)
const BASE64 = Buffer.from(BYTES).toString("base64")

const TOO_OLD = ({ bytes }) => !bytes && "binary payloads came with 1.5.7"

export const BYTEWISE = [
  step("e118_e127_e145 pushes binary payloads", {
    not: TOO_OLD,

    async run(stage) {
      const topic = `public:${stage.app.slug}:bytes`
      const witness = await stage.connectOther(LATEST).joined(topic, { events: ["bin", "msg"] })
      const sender = await stage.connect().joined(topic, { events: ["bin", "msg"] })

      if (!stage.overWebSocket && !stage.client.posts) return postsAsText(stage, sender, witness)
      sender.pushBytes("bin", BYTES)
      assert.deepEqual(await witness.inbox.take(), { event: "bin", bytes: BYTES })
      sender.pushBytes("bin", [])
      assert.deepEqual(await witness.inbox.take(), { event: "bin", bytes: [] })
      const refused = await sender.pushBytes("#nope", BYTES).take()
      assert.deepEqual(refused, { status: "error", response: { reason: "invalid event" } })
      // The events of a scope arrive in their order, so the refused one would arrive before this one.
      await stage.trigger({ topic: "bytes", payload: { n: 1 } })
      assert.deepEqual(await witness.inbox.take(), { event: "msg", payload: { n: 1 } })
      const events = witness.client.wire.map(({ event }) => event).filter(event => event !== "phx_reply")
      assert.deepEqual(events, ["bin", "bin", "msg"])
    },
  }),

  step("e126 pushes binary payloads with names that are not ASCII", {
    not: client => TOO_OLD(client) || (!client.namesInUtf8 && "clients measure names in UTF-8 since 1.8.7"),

    async run(stage) {
      const topic = `public:${stage.app.slug}:café ☕`
      const witness = await stage.connectOther(LATEST).joined(topic, { events: ["naïve"] })
      const sender = await stage.connect().joined(topic, { events: [] })
      sender.pushBytes("naïve", BYTES)
      assert.deepEqual(await witness.inbox.take(), { event: "naïve", bytes: BYTES })
    },
  }),

  step("e121_e127 receives binary payloads", {
    not: TOO_OLD,

    async run(stage) {
      // The step counts the subscribers of this scope that are skipped, so no other step uses it.
      const payload = { guardian_token: stage.token({ listen: ["bytes:*"] }) }
      const join = { payload, events: ["bin", "msg"] }
      const { inbox, client } = await stage.connect().joined(`bytes:${stage.app.slug}:room`, join)

      const { skipped } = await stage.triggerBytes({ scope: "bytes", topic: "room", payload_base64: BASE64 })
      await stage.trigger({ scope: "bytes", topic: "room", payload: { n: 1 } })

      if (stage.overWebSocket) {
        assert.equal(skipped, 0)
        assert.deepEqual(await inbox.take(), { event: "bin", bytes: BYTES })
        const { ref, join_ref } = await client.onWire({ event: "bin" }, "its message")
        assert.deepEqual([ref, join_ref], [null, null])
      }
      assert.deepEqual(await inbox.take(), { event: "msg", payload: { n: 1 } })
      if (stage.overWebSocket) return undefined
      assert.equal(skipped, 1)
      return "n/a: long-poll carries none to clients"
    },
  }),
]

/** 1.5 and 1.6 post binary payloads as if they were JSON, which no server can read. They must join again after that. */
async function postsAsText(stage, sender, witness) {
  sender.pushBytes("bin", BYTES)
  await sender.client.lost.take("the loss of the connection")
  assert.equal((await rejoined(sender.replies)).status, "ok")
  await stage.trigger({ topic: "bytes", payload: { n: 1 } })
  for (const { inbox } of [sender, witness]) assert.deepEqual(await inbox.take(), { event: "msg", payload: { n: 1 } })
  return "n/a: it posts them as text"
}
