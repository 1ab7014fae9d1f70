// The tools of a step of the matrix: the generation of its client, its own app, servers, and a clean-up.

import { Client } from "./client.mjs"
import { TEST_APP } from "./herald.mjs"
import { Proxy } from "./proxy.mjs"
import { mint } from "./token.mjs"

/** Describes a step: what a client does, or why it cannot. See `generations.test.mjs`. */
export function step(title, parts) {
  const label = title.replace(/^(e\d{3}_)*e\d{3} /, "")
  return { title, label, ...parts }
}

export class Stage {
  constructor(client, servers) {
    Object.assign(this, { client, ...servers })
    this.leftovers = []
  }

  get app() {
    return this.client.app
  }

  get overWebSocket() {
    return this.client.transport === "WebSocket"
  }

  /** Connects a client of this stage's generation, over its transport and in its place. */
  connect({ to = this.herald, ...options } = {}) {
    return this.clear(new Client(this.client, to, { page: this.client.page, ...options }))
  }

  /** Connects another client, in node. */
  connectOther(generation, { to = this.herald, ...options } = {}) {
    return this.clear(new Client({ transport: "WebSocket", ...generation }, to, options))
  }

  async proxy(herald) {
    const proxy = await Proxy.start(herald)
    this.leftovers.push(() => proxy.close())
    return proxy
  }

  /** A token of the stage's app. */
  token(claims) {
    return mint({ sub: { id: 1 }, ...claims }, this.app.secret)
  }

  /** A token of the app that every server has. */
  tokenOfTestApp() {
    return mint({ listen: ["private:*"] }, TEST_APP.secret)
  }

  trigger(fields) {
    return this.herald.trigger(fields, this.app)
  }

  triggerBytes(fields) {
    return this.herald.triggerRaw({ event: "bin", ...fields }, this.app)
  }

  /** Has the client disconnect at the end of the step. */
  clear(client) {
    this.leftovers.push(() => client.disconnect())
    return client
  }

  async end() {
    for (const clear of this.leftovers.reverse()) await clear()
  }
}
