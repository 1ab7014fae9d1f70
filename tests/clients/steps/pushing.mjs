// Pushes, the events that arrive, and heartbeats.

import assert from "node:assert/strict"
import { LATEST } from "../support/generations.mjs"
import { step } from "../support/stage.mjs"
import { eventually } from "../support/wait.mjs"
import { rejoined } from "./ending.mjs"

const HEARTBEAT_MS = 100

export const PUSHING = [
  step("e158_e159_e172 pushes, and all versions receive the events in one order", {
    arrange(stage) {
      return stage.connect().joined("public:test-app:together", { events: ["msg"] })
    },

    async act(stages) {
      for (const stage of stages) stage.reply = stage.arranged.push("msg", { from: stage.client.id, text: "naïve café ☕ <b>" })
      await Promise.all(stages.map(async stage => {
        stage.heard = []
        for (const _ of stages) stage.heard.push(await stage.arranged.inbox.take())
      }))
      this.all = stages
    },

    async run(stage) {
      const { inbox, client } = stage.arranged
      const expected = this.all.map(({ client }) => client.id).sort()
      assert.deepEqual(stage.heard.map(({ payload }) => payload.from).sort(), expected)
      assert.deepEqual(stage.heard, this.all[0].heard)
      for (const { event, payload } of stage.heard) assert.deepEqual([event, payload.text], ["msg", "naïve café ☕ <b>"])
      await client.fence()
      assert.deepEqual([inbox.rest(), stage.reply.rest()], [[], []])
    },
  }),

  step("e158_e159_e172 is told when a push is refused", {
    async run(stage) {
      const { slug } = stage.app
      const claims = { listen: ["private:*"], publish: ["private:elsewhere"] }
      const payload = { guardian_token: stage.token(claims) }
      const client = stage.connect()
      const mute = await client.joined(`private:${slug}`, { payload })
      const free = await client.joined(`public:${slug}`)

      const notPermitted = mute.push("foo-topic:msg", { message: "let me" })
      const noEvent = free.push("#nope", {})

      assert.deepEqual(await notPermitted.take(), { status: "error", response: {} })
      assert.deepEqual(await noEvent.take(), { status: "error", response: { reason: "invalid event" } })
      // The events of a scope arrive in their order, so a refused one would arrive before these.
      for (const scope of ["private", "public"]) await stage.trigger({ scope, topic: "#general" })
      for (const { inbox } of [mute, free]) assert.deepEqual(await inbox.take(), { event: "msg", payload: {} })
      await client.fence()
      assert.deepEqual([notPermitted.rest(), noEvent.rest()], [[], []])
      const events = client.wire.map(({ event }) => event).filter(event => event !== "phx_reply")
      assert.deepEqual(events, ["msg", "msg"])
    },
  }),

  step("e158_e159 pushes where its token permits it", {
    async run(stage) {
      const payload = { guardian_token: stage.token({ listen: ["private:*"], publish: ["private:*"] }) }
      const room = await stage.connect().joined(`private:${stage.app.slug}:room:1`, { payload })
      const reply = room.push("msg", { message: "between us" })
      assert.deepEqual(await room.inbox.take(), { event: "msg", payload: { message: "between us" } })
      await room.client.fence()
      assert.deepEqual(reply.rest(), [])
    },
  }),

  step("e180 sends events that it pushed before it had joined", {
    not: ({ flushesLate, transport }) => flushesLate && transport === "long-poll" && "its pushes race its join",

    async run(stage) {
      const { flushesLate, posts } = stage.client
      const pushes = [1, 2, 3].map(n => ["msg", { n }])
      const { inbox, replies, client } = stage.connect().join(`public:${stage.app.slug}:early`, { events: ["msg"], pushes })
      assert.deepEqual(await replies.take(), { status: "ok", response: {} })
      if (flushesLate) await client.do("babble") // the server closes its connection, and it joins again
      const heard = []
      for (const _ of pushes) heard.push((await inbox.take()).payload.n)
      await client.fence()
      assert.deepEqual(inbox.rest(), [])
      // Without batches, each message over long-poll is its own request, and these requests race.
      const inOrder = stage.overWebSocket || posts
      assert.deepEqual(inOrder ? heard : heard.sort(), [1, 2, 3])
      if (flushesLate) return "✓ with its next join"
      return inOrder ? "✓ in order" : "✓ its requests race"
    },
  }),

  step("e158_e159_e172_e173 receives broadcasts, which have no ref", {
    async run(stage) {
      const topic = `public:${stage.app.slug}`
      const { inbox, client } = await stage.connect().joined(topic)

      await stage.trigger({ topic: "foo-topic", payload: { message: "one channel" } })
      await stage.trigger({ topic: "other-topic", payload: { message: "not listened to" } })
      await stage.trigger({ topic: "#general", payload: { message: "all channels" } })

      assert.deepEqual(await inbox.take(), { event: "foo-topic:msg", payload: { message: "one channel" } })
      assert.deepEqual(await inbox.take(), { event: "msg", payload: { message: "all channels" } })
      await client.fence()
      assert.deepEqual(inbox.rest(), [])
      const broadcasts = client.wire.filter(message => message.topic === topic && message.event !== "phx_reply")
      const refs = stage.client.vsn === "1.0.0" ? { ref: null } : { ref: null, join_ref: null }
      for (const { topic, event, ...rest } of broadcasts) assert.deepEqual(rest, refs)
      assert.deepEqual(broadcasts.map(({ event }) => event), ["foo-topic:msg", "other-topic:msg", "msg"])
    },
  }),

  step("e172 has its heartbeats answered", {
    async run(stage) {
      // A client over WebSocket closes its connection if a heartbeat is not answered before the next one is due, so its
      // interval is longer than the pauses of a busy machine; above all if it would not reconnect after that.
      const times = stage.overWebSocket ? (stage.client.staysAway ? 30 : 10) : 1
      const client = stage.connect({ heartbeatMs: times * HEARTBEAT_MS })
      if (stage.overWebSocket) return void (await client.beats(3))
      await client.opened.take()
      // If this client sent heartbeats, it would have sent as many as the other one by then.
      await stage.connectOther(LATEST, { heartbeatMs: HEARTBEAT_MS }).beats(3)
      assert.equal(client.answeredHeartbeats, 0)
      await client.fence()
      assert.equal(client.answeredHeartbeats, 1)
      return "✓ it sends none by itself"
    },
  }),

  step("e174_e175 notices that its heartbeats are not answered, even if other messages arrive", {
    not({ vsn, transport, staysAway }) {
      if (transport === "long-poll") return "it sends none"
      if (staysAway) return "it then closes with 1000, and reconnects only after other codes"
      return vsn === "1.0.0" && "clients check for answers since 1.3"
    },

    async run(stage) {
      const proxy = await stage.proxy(stage.herald)
      const flow = { scope: "public", channel: "flow" }
      const client = stage.connect({ to: proxy, heartbeatMs: 5 * HEARTBEAT_MS })
      const { inbox, replies } = await client.joined(`public:${stage.app.slug}:flow`)
      await client.opened.take()

      proxy.keepBack(text => text.includes('"phoenix","phx_reply"'))
      await stage.trigger({ topic: "flow" })
      await inbox.take()
      const isBack = async () => {
        await stage.trigger({ topic: "flow" })
        return !client.opened.isEmpty
      }
      await eventually(isBack, "the next connection")
      proxy.keepBack(() => false)

      assert.deepEqual(await rejoined(replies), { status: "ok", response: {} })
      await stage.herald.hasSubscribers(1, flow, stage.app)
    },
  }),
]
