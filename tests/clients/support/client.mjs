// A client of one generation of phoenix.js, as the test controls it.

import { NodePage } from "./page.mjs"
import { eventually, Inbox, within } from "./wait.mjs"

/** The delays before retries, of which the last one repeats. The clients' own tables begin with up to a second. */
const RETRIES_MS = [150]

/**
 * The delays for clients up to 1.4.2. Their channels repeat a rejoin after these delays even if it was answered, and
 * 1.2 and 1.3 then never see the answer. The second delay is therefore long, so that the answer comes before it on a
 * slow machine, and the third is longer than the client waits for an answer.
 */
const waryRetriesMs = outageMs => [150, outageMs, 12_000]

export class Client {
  /**
   * Connects a client of `generation` to `mount` of a server, or of a proxy in front of it.
   *
   * The client runs on `page`, which must have loaded this generation, or else in a window of its own. A client up to
   * 1.4.2 that loses its connection for less than `outageMs` reconnects with its second attempt at the latest.
   */
  constructor(generation, { host, scheme = "ws" }, { mount = "/socket", page, outageMs = 2000, ...options } = {}) {
    this.label = label(generation)
    this.page = page ?? new NodePage(generation)
    this.ownsPage = page === undefined
    this.number = this.page.number()
    this.page.clients.set(this.number, this)
    this.opened = new Inbox(`${this.label}, socket open`)
    this.lost = new Inbox(`${this.label}, socket lost`)
    this.wire = [] // every message from the server, whether or not a channel wants it
    this.awaited = []
    this.listeners = new Map()
    const polls = generation.transport === "long-poll"
    const retriesMs = generation.rejoinsDenied ? RETRIES_MS : waryRetriesMs(outageMs)
    this.do("connect", `${scheme}://${host}${mount}`, { polls, retriesMs, ...options })
  }

  /** Has the page's driver call `method` for this client. */
  do(method, ...words) {
    return within(this.page.call(method, this.number, ...words), `${this.label} to ${method}`)
  }

  /** Joins a topic, listens to `events`, and pushes `pushes` without waiting for the reply. */
  join(topic, { payload = {}, events = ["foo-topic:msg", "msg"], withPresence = false, pushes = [] } = {}) {
    const channel = new Channel(this, topic)
    this.do("join", channel.number, topic, { payload, events, withPresence, pushes })
    return channel
  }

  /**
   * Runs the lines of an example that join `topic`. `page` holds the `event` to listen to, the `token` and perhaps a
   * `position`.
   */
  paste(lines, topic, page) {
    const channel = new Channel(this, topic)
    this.do("paste", channel.number, lines, page)
    return channel
  }

  /** Joins, and fails unless the reply has the status `ok`. */
  async joined(topic, options) {
    const channel = this.join(topic, options)
    const { status, response } = await channel.replies.take("the join reply")
    if (status !== "ok") throw new Error(`${this.label} may not join ${topic}: ${JSON.stringify(response)}`)
    return channel
  }

  /** Waits for a message with these fields; a message that has already arrived counts. */
  async onWire(fields, what) {
    const isThis = message => Object.entries(fields).every(([name, value]) => message[name] === value)
    const message = this.wire.find(isThis) ?? new Promise(resolve => this.awaited.push({ isThis, resolve }))
    return within(message, `${what} at ${this.label}`)
  }

  /** Sends a message that no channel object of the client knows of, and waits for the reply. */
  async slip(message) {
    const ref = await this.do("slip", message)
    await this.onWire({ event: "phx_reply", ref }, `the reply to ${message.event}`)
  }

  /** Waits until everything that the server has sent so far has arrived: the reply to a heartbeat comes after it. */
  async fence() {
    await this.slip({ topic: "phoenix", event: "heartbeat" })
  }

  /** Waits until `times` heartbeats were answered. */
  async beats(times) {
    await eventually(() => this.answeredHeartbeats >= times, `${times} heartbeats of ${this.label}`)
  }

  get answeredHeartbeats() {
    return this.wire.filter(({ topic, event }) => topic === "phoenix" && event === "phx_reply").length
  }

  async disconnect() {
    await this.do("disconnect")
    this.page.clients.delete(this.number)
    if (this.ownsPage) await this.page.close()
  }

  /** Receives a report of the page's driver. */
  hear(kind, ...words) {
    if (kind === "wire") this.sawOnWire(...words)
    else if (kind === "opened" || kind === "lost") this[kind].put(...words)
    else this.listeners.get(words[0])?.hear(kind, words[1])
  }

  sawOnWire(message) {
    this.wire.push(message)
    this.awaited.filter(({ isThis }) => isThis(message)).forEach(({ resolve }) => resolve(message))
    this.awaited = this.awaited.filter(({ isThis }) => !isThis(message))
  }
}

/** One channel object of a client. */
class Channel {
  constructor(client, topic) {
    this.client = client
    this.topic = topic
    this.number = client.page.number()
    client.listeners.set(this.number, this)
    this.inbox = new Inbox(`${client.label}, ${topic}`)
    this.replies = new Inbox(`${client.label}, join of ${topic}`)
    this.closed = new Inbox(`${client.label}, close of ${topic}`)
    this.errored = new Inbox(`${client.label}, error of ${topic}`)
    this.pictures = new Inbox(`${client.label}, presence of ${topic}`)
    this.reloads = new Inbox(`${client.label}, reload of ${topic}`)
  }

  /** Pushes, and returns the inbox into which replies, if there are any, are put. */
  push(event, payload) {
    return this.send(event, { payload })
  }

  pushBytes(event, bytes) {
    return this.send(event, { bytes: [...bytes] })
  }

  send(event, message) {
    const request = this.client.page.number()
    const replies = new Inbox(`${this.client.label}, reply to ${event}`)
    this.client.listeners.set(request, { hear: (_, reply) => replies.put(reply) })
    this.client.do("push", this.number, request, event, message)
    return replies
  }

  /**
   * Leaves, and waits for the server's `phx_close`. Newer clients call the channel's `onClose` before the server
   * answers.
   */
  async leave() {
    const { client, topic } = this
    client.wire = client.wire.filter(message => message.topic !== topic)
    await client.do("leave", this.number)
    await client.onWire({ topic, event: "phx_close" }, `phx_close of ${topic}`)
  }

  hear(kind, word) {
    const inboxes = {
      event: this.inbox,
      reply: this.replies,
      closed: this.closed,
      errored: this.errored,
      picture: this.pictures,
      reloads: this.reloads,
    }
    inboxes[kind].put(word)
  }
}

function label({ label, transport }) {
  return transport ? `${label}, ${transport}` : label
}
