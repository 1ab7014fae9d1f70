// A proxy in front of a server that simulates failures of proxies and networks.

import net from "node:net"
import { Frames } from "./frames.mjs"
import { eventually } from "./wait.mjs"

const HEAD_END = "\r\n\r\n"
const REFUSAL = "HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"

export class Proxy {
  /**
   * Listens in front of `herald`; `upgrades` says whether WebSockets are permitted. A proxy that `waits` holds a new
   * connection until `herald` is ready, as load balancers do that queue or retry. Otherwise a connection breaks while
   * `herald` is down.
   */
  static async start(herald, { upgrades = true, waits = false } = {}) {
    const proxy = new Proxy(herald, { upgrades, waits })
    await new Promise((resolve, reject) => proxy.server.on("error", reject).listen(0, "127.0.0.1", resolve))
    return proxy
  }

  constructor(herald, { upgrades, waits }) {
    Object.assign(this, { herald, upgrades, waits })
    this.seen = [] // the path of the first request of each connection
    this.sockets = new Set()
    this.requests = new Gate()
    this.answers = new Gate()
    this.keepsBack = () => false
    this.isDown = false
    this.queue = null // the connections that wait for the proxy to come back
    this.server = net.createServer(client => this.accept(client))
  }

  get port() {
    return this.server.address().port
  }

  get host() {
    return `127.0.0.1:${this.port}`
  }

  get origin() {
    return `http://${this.host}`
  }

  /** The number of connections that began with a request to this path. */
  count(path) {
    return this.seen.filter(seen => seen === path).length
  }

  /** From now on drops the text frames of the server over WebSockets for whose text `isUnwanted` returns true. */
  keepBack(isUnwanted) {
    this.keepsBack = isUnwanted
  }

  /** Whether a client waits for an answer. A client over long-poll notices only then that its connection breaks. */
  get isAsked() {
    return [...this.sockets].some(socket => socket.isAsking)
  }

  /** Breaks every connection as a network failure does: neither side sends a close frame. */
  cut() {
    this.sockets.forEach(socket => socket.destroy())
  }

  /** Breaks every connection, and accepts no other until `comeBack`. */
  goDown() {
    this.isDown = true
    this.cut()
  }

  /** Accepts connections, but serves none of them until `comeBack`: a client that retries too early need not retry again. */
  keepWaiting() {
    this.queue ??= []
  }

  comeBack() {
    this.isDown = false
    const waiting = this.queue ?? []
    this.queue = null
    waiting.forEach(client => client.destroyed || this.serve(client))
  }

  accept(client) {
    if (this.isDown && !this.queue) return client.destroy()
    this.keep(client)
    if (this.queue) this.queue.push(client)
    else this.serve(client)
  }

  serve(client) {
    let head = ""
    const read = chunk => {
      head += chunk.toString("latin1")
      if (!head.includes(HEAD_END)) return
      client.off("data", read)
      this.seen.push(head.split(" ")[1].split("?")[0])
      const upgrade = /^upgrade: websocket/im.test(head)
      if (upgrade && !this.upgrades) return client.end(REFUSAL)
      this.join(client, Buffer.from(head, "latin1"), upgrade)
    }
    client.on("data", read)
  }

  async join(client, head, upgrade) {
    if (this.waits) await this.untilReady()
    if (client.destroyed) return
    const server = this.keep(net.connect(this.herald.port, "127.0.0.1"))
    const frames = new Frames(text => !this.keepsBack(text))
    const ask = chunk => {
      client.isAsking = true
      this.requests.pass(server, chunk)
    }
    ask(head)
    client.on("data", ask)
    server.on("data", chunk => {
      client.isAsking = false
      this.answers.pass(client, upgrade ? frames.sift(chunk) : chunk)
    })
    client.on("close", () => this.requests.whenOpen(() => server.end()))
    server.on("close", () => this.answers.whenOpen(() => client.end()))
  }

  /** Waits until the server accepts clients. A server that does not run, or that drains, is not ready. */
  untilReady() {
    const isReady = () => fetch(`${this.herald.origin}/ready`).then(response => response.ok, () => false)
    return eventually(isReady, "the server behind the proxy")
  }

  keep(socket) {
    this.sockets.add(socket)
    // An error only closes this socket; `join` then ends the connection to the other side.
    socket.on("error", () => socket.destroy())
    return socket.on("close", () => this.sockets.delete(socket))
  }

  async close() {
    this.cut()
    await new Promise(resolve => this.server.close(resolve))
  }
}

/** Passes the bytes of one direction on, or queues them until they may pass. */
class Gate {
  constructor() {
    this.isHeld = false
    this.line = []
  }

  pass(socket, chunk) {
    this.whenOpen(() => socket.destroyed || socket.write(chunk))
  }

  whenOpen(act) {
    if (this.isHeld) this.line.push(act)
    else act()
  }

  hold() {
    this.isHeld = true
  }

  release() {
    this.isHeld = false
    this.line.splice(0).forEach(act => act())
  }
}
