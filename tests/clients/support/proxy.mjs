// A proxy in front of a server that may have no use for WebSockets, as some companies run them.

import net from "node:net"

const HEAD_END = "\r\n\r\n"
const REFUSAL = "HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"

export class Proxy {
  /** Listens in front of `herald`; `upgrades` says whether they pass. */
  static async start(herald, { upgrades }) {
    const proxy = new Proxy(herald, upgrades)
    await new Promise((resolve, reject) => proxy.server.on("error", reject).listen(0, "127.0.0.1", resolve))
    return proxy
  }

  constructor(herald, upgrades) {
    this.herald = herald
    this.upgrades = upgrades
    this.seen = [] // of every connection, what its first request asked for
    this.sockets = new Set()
    this.server = net.createServer(client => this.serve(client))
  }

  get origin() {
    return `http://127.0.0.1:${this.server.address().port}`
  }

  /** How many connections began with a request to this path. */
  count(path) {
    return this.seen.filter(seen => seen === path).length
  }

  serve(client) {
    this.keep(client)
    let head = ""
    const read = chunk => {
      head += chunk.toString("latin1")
      if (!head.includes(HEAD_END)) return
      client.off("data", read)
      client.pause()
      this.seen.push(head.split(" ")[1].split("?")[0])
      if (/^upgrade: websocket/im.test(head) && !this.upgrades) return client.end(REFUSAL)
      const server = this.keep(net.connect(this.herald.port, "127.0.0.1"))
      server.write(Buffer.from(head, "latin1"))
      client.pipe(server).pipe(client)
      client.on("close", () => server.destroy())
      server.on("close", () => client.destroy())
    }
    client.on("data", read)
  }

  keep(socket) {
    this.sockets.add(socket)
    // A connection that breaks is the other side's to notice.
    socket.on("error", () => socket.destroy())
    return socket.on("close", () => this.sockets.delete(socket))
  }

  async close() {
    this.sockets.forEach(socket => socket.destroy())
    await new Promise(resolve => this.server.close(resolve))
  }
}
