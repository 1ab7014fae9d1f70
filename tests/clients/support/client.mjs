// phoenix.js of several generations, each the file its npm package ships, in a small browser of its own.

import { readFileSync } from "node:fs"
import { createRequire } from "node:module"
import vm from "node:vm"
import WebSocket from "ws"
import { Inbox, within } from "./wait.mjs"
import { pageRequests } from "./xhr.mjs"

const require = createRequire(import.meta.url)

/** How soon the clients come back; their own first steps are up to a second. */
const RETRY_MS = 150

/** One row per generation; `module` is the name under which package.json installs it. */
export const GENERATIONS = [
  { label: "phoenix-js 1.0.3", module: "phoenix-js", vsn: "1.0.0" },
  { label: "phoenix 1.2.1", module: "phoenix-1.2", vsn: "1.0.0" },
  { label: "phoenix 1.3.5", module: "phoenix-1.3", vsn: "2.0.0" },
  { label: "phoenix 1.8.16", module: "phoenix", vsn: "2.0.0" },
]

/** How a client may be connected. */
export const TRANSPORTS = ["WebSocket", "long-poll"]

/** Every generation over every transport. */
export const CLIENTS = TRANSPORTS.flatMap(transport =>
  GENERATIONS.map(generation => ({ ...generation, transport, label: `${generation.label}, ${transport}` })))

export const LATEST = GENERATIONS[GENERATIONS.length - 1]

/** Runs a generation's published file, unchanged, among the globals it expects, and returns its exports. */
export function load({ module: name }, page = {}) {
  const file = require.resolve(name)
  const window = browserGlobals(page)
  vm.runInContext(readFileSync(file, "utf8"), window, { filename: file })
  return window.module.exports
}

/** The part of a browser's `window` that phoenix.js and the articles' code use. */
export function browserGlobals(page = {}) {
  const module = { exports: {} }
  const globals = { WebSocket, btoa, console, status: "", module, exports: module.exports }
  const window = vm.createContext({ ...globals, ...page })
  window.window = window.self = window
  // Some clients forget their heartbeat when they disconnect; a test must still end.
  window.setTimeout = (...timer) => setTimeout(...timer).unref()
  window.setInterval = (...timer) => setInterval(...timer).unref()
  Object.assign(window, { clearTimeout, clearInterval })
  return window
}

/** Turns what another realm made into plain values that `assert` can compare. */
export function plain(value) {
  return value === undefined ? undefined : JSON.parse(JSON.stringify(value))
}

export class Client {
  /** Connects one generation's socket to `mount` of a server; `page` adds globals to those of its browser. */
  constructor(generation, herald, { mount = "/socket", params = {}, page = {} } = {}) {
    const { XMLHttpRequest, close } = pageRequests()
    const polls = generation.transport === "long-poll"
    const { Socket, LongPoll } = load(generation, { XMLHttpRequest, ...(polls && { WebSocket: undefined }), ...page })
    this.label = generation.label
    this.closePage = close
    this.socket = new Socket(`ws://${herald.host}${mount}`, {
      params,
      ...(polls && { transport: LongPoll }),
      reconnectAfterMs: () => RETRY_MS,
      rejoinAfterMs: () => RETRY_MS,
    })
    this.opened = new Inbox(`${this.label}, socket open`)
    this.lost = new Inbox(`${this.label}, socket lost`)
    this.socket.onOpen(() => this.opened.put("open"))
    this.socket.onClose(() => this.lost.put("lost"))
    this.wire = [] // every message from the server, whether or not a channel wants it
    this.socket.onMessage(({ topic, event }) => this.sawOnWire({ topic, event }))
    this.awaited = []
    this.socket.connect()
  }

  /** Joins a topic and listens to `events`; the reply is `{status, response}`. */
  join(topic, { payload = {}, events = ["foo-topic:msg", "msg"] } = {}) {
    const channel = this.socket.channel(topic, payload)
    const inbox = new Inbox(`${this.label}, ${topic}`)
    for (const event of events) channel.on(event, message => inbox.put({ event, payload: plain(message) }))
    const replies = new Inbox(`${this.label}, join of ${topic}`)
    listenTo(channel.join(), replies)
    return { channel, inbox, replies }
  }

  /** Joins, and fails unless the server says ok. */
  async joined(topic, options) {
    const join = this.join(topic, options)
    const { status, response } = await join.replies.take("the join reply")
    if (status !== "ok") throw new Error(`${this.label} may not join ${topic}: ${JSON.stringify(response)}`)
    return join
  }

  /** Leaves and waits for the server's `phx_close`; what newer clients report as "left" is their own wish. */
  async leave(channel) {
    const closed = new Promise(resolve => this.awaited.push({ topic: channel.topic, event: "phx_close", resolve }))
    channel.leave()
    await within(closed, `phx_close of ${channel.topic} at ${this.label}`)
  }

  sawOnWire({ topic, event }) {
    this.wire.push({ topic, event })
    const isThis = awaited => awaited.topic === topic && awaited.event === event
    this.awaited.filter(isThis).forEach(awaited => awaited.resolve())
    this.awaited = this.awaited.filter(awaited => !isThis(awaited))
  }

  async disconnect() {
    await within(new Promise(resolve => this.socket.disconnect(resolve)), `${this.label} to disconnect`)
    this.closePage()
  }
}

/** Pushes and returns the inbox into which replies, if there are any, are put. */
export function push(channel, event, payload) {
  const replies = new Inbox(`reply to ${event}`)
  listenTo(channel.push(event, payload), replies)
  return replies
}

function listenTo(request, replies) {
  for (const status of ["ok", "error"]) {
    request.receive(status, response => replies.put({ status, response: plain(response) }))
  }
}
