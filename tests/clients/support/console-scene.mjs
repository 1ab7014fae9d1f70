// Apps for the console to show: with sessions over both transports, members, events and changes.

import { Client } from "./client.mjs"
import { LATEST } from "./generations.mjs"
import { mint } from "./token.mjs"

const PEOPLE = ["ada", "grace", "edsger"]
const EVENTS = ["order.created", "msg", "typing"]
/**
 * A name of 60 characters, a channel that almost fills a topic of such an app, the longest id of a user, and a long
 * event. None of them has a place at which a line can break.
 */
const LONG = { name: "Unbreakable".repeat(6).slice(0, 60), channel: "c".repeat(175), user: "u".repeat(128), event: "e".repeat(60) }

export class Scene {
  static async set(herald) {
    const scene = new Scene(herald)
    scene.app = await herald.createApp({ name: "Northwind Shop" })
    scene.empty = await herald.createApp({ name: "Support Desk" })
    scene.inactive = await herald.createApp({ name: "A name that is so long that it has to break somewhere or it would push everything else out of the window", active: false })
    for (const nth of PEOPLE.keys()) await scene.enter(nth)
    await scene.enterAtLength()
    await herald.updateApp(scene.app.slug, { client_events: "all" })
    await herald.updateApp(scene.app.slug, { allowed_origins: [], history_seconds: 3600 })
    for (let n = 0; n < 8; n += 1) await scene.trigger({ scope: "presence", topic: n % 3 === 2 ? "#general" : "team", event: EVENTS[n % 2], payload: { id: 4711 + n, total: "39.90" } })
    return scene
  }

  constructor(herald) {
    Object.assign(this, { herald, clients: [] })
  }

  /** Opens one more session of the app, which joins its team and some rooms. */
  async enter(nth) {
    const { slug, secret } = this.app
    const client = new Client({ ...LATEST, transport: nth === 2 ? "long-poll" : "WebSocket" }, this.herald)
    this.clients.push(client)
    const payload = { guardian_token: mint({ sub: PEOPLE[nth], listen: ["presence:*", "private:*"], presence: { name: PEOPLE[nth] } }, secret) }
    await client.joined(`public:${slug}`)
    await client.joined(`presence:${slug}:team`, { payload })
    for (let room = 0; room <= nth * 2; room += 1) await client.joined(`private:${slug}:room-${room}`, { payload })
  }

  /** Creates an app with long names, and opens a session that joins its long channel. */
  async enterAtLength() {
    const { herald } = this
    this.long = await herald.createApp({ name: LONG.name })
    this.longChannel = LONG.channel
    const client = new Client({ ...LATEST, transport: "WebSocket" }, herald)
    this.clients.push(client)
    const payload = { guardian_token: mint({ sub: LONG.user, listen: ["presence:*"], presence: {} }, this.long.secret) }
    await client.joined(`presence:${this.long.slug}:${LONG.channel}`, { payload })
  }

  /** Publishes an event in the app of long names. */
  happenAtLength() {
    return this.herald.trigger({ scope: "presence", topic: LONG.channel, event: LONG.event, payload: { text: "w".repeat(300) } }, this.long)
  }

  /** Publishes an order and `times` more events, and lets a guest join, be refused, and leave. */
  async happen(times) {
    const { slug, secret } = this.app
    const guest = new Client({ ...LATEST, transport: "WebSocket" }, this.herald)
    await this.trigger({ topic: "orders", event: "order.created", payload: { id: 4719, total: "39.90" } })
    const channel = await guest.joined(`public:${slug}:orders`)
    await guest.join(`private:${slug}:vault`).replies.take()
    const payload = { guardian_token: mint({ sub: "katherine", listen: ["private:*"] }, secret) }
    await guest.joined(`private:${slug}:room-0`, { payload })
    for (let n = 0; n < times; n += 1) await this.trigger({ topic: ["orders", "room-1", "#general"][n % 3], event: EVENTS[n % 3], payload: { id: n } })
    await channel.leave()
    await guest.disconnect()
  }

  /** Publishes at a rate that rises and falls, to listeners that come and go, for `seconds` seconds. */
  async beBusy(seconds) {
    const listeners = []
    for (let second = 0; second < seconds; second += 1) {
      const began = performance.now()
      const swing = Math.sin(second / 20) + 0.4 * Math.sin(second / 7)
      const [wanted, rate] = [Math.round(24 + 10 * Math.sin(second / 35)), Math.round(40 + 20 * swing)]
      while (listeners.length < wanted) listeners.push(await this.listen())
      while (listeners.length > wanted) await listeners.shift().disconnect()
      await this.publish(rate)
      await new Promise(resolve => setTimeout(resolve, Math.max(0, began + 1000 - performance.now())))
    }
    this.clients.push(...listeners)
  }

  async listen() {
    const client = new Client({ ...LATEST, transport: "WebSocket" }, this.herald)
    await client.joined(`public:${this.app.slug}:orders`)
    return client
  }

  async publish(count) {
    const { slug, secret } = this.app
    const event = (_, n) => ({ topic: `public:${slug}:orders`, event: EVENTS[n % EVENTS.length], payload: { id: n, total: "39.90" } })
    const body = JSON.stringify({ events: Array.from({ length: count }, event) })
    const headers = { authorization: secret, "content-type": "application/json" }
    const response = await fetch(`${this.herald.origin}/api/publish/bulk`, { method: "POST", headers, body })
    if (!response.ok) throw new Error(`the events were answered with ${response.status}`)
  }

  trigger(event) {
    return this.herald.trigger(event, this.app)
  }

  async close() {
    await Promise.all(this.clients.map(client => client.disconnect()))
  }
}
