// Thousands of triggers over connections that are kept open.

import http from "node:http"
import https from "node:https"
import { basic, TEST_APP } from "./herald.mjs"
import { DEADLINE_MS } from "./wait.mjs"

/** The topic on which the triggers of these tests arrive. */
export const LOAD_TOPIC = `public:${TEST_APP.slug}:load`

const PATH = `/api/apps/${TEST_APP.slug}/events`

/** Posts triggers through a pool of connections that are kept open. */
export class Triggers {
  constructor({ origin, certificate }, { connections, headers = {} }) {
    const kind = origin.startsWith("https:") ? https : http
    const agent = new kind.Agent({ keepAlive: true, maxSockets: connections, ca: certificate })
    const login = { authorization: basic(TEST_APP.key, TEST_APP.secret) }
    const form = { "content-type": "application/x-www-form-urlencoded" }
    Object.assign(this, { kind, agent, connections, url: origin + PATH, headers: { ...login, ...form, ...headers } })
  }

  /** Posts the triggers from `first` on, as many at once as there are connections, and counts their outcomes. */
  async post(count, { first = 0 } = {}) {
    const outcomes = {}
    let next = first
    const work = async () => {
      while (next < first + count) {
        const outcome = await this.one(next++)
        outcomes[outcome] = (outcomes[outcome] ?? 0) + 1
      }
    }
    await Promise.all(Array.from({ length: this.connections }, work))
    return outcomes
  }

  /** Posts one trigger; returns its status, or the error. */
  one(n) {
    const body = new URLSearchParams({ event: "msg", scope: "public", topic: "load", payload: JSON.stringify({ n }) }).toString()
    const headers = { ...this.headers, "content-length": body.length }
    return new Promise(resolve => {
      const request = this.kind.request(this.url, { method: "POST", headers, agent: this.agent, timeout: DEADLINE_MS })
      request.on("timeout", () => request.destroy(new Error(`no answer within ${DEADLINE_MS} ms`)))
      request.on("error", error => resolve(error.code ?? error.message))
      request.on("response", response => {
        response.on("error", error => resolve(error.message)).on("end", () => resolve(response.statusCode)).resume()
      })
      request.end(body)
    })
  }

  close() {
    this.agent.destroy()
  }
}
