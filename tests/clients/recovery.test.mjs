// `static/herald-recovery.mjs` with real clients and a real server: every generation of phoenix.js over both transports in
// node, except where it cannot reconnect, and pages in Chromium.

import assert from "node:assert/strict"
import { describe, test } from "node:test"
import { recover } from "../../static/herald-recovery.mjs"
import { GENERATIONS, LATEST, overEachTransport, STAYS_AWAY } from "./support/generations.mjs"
import { TEST_APP } from "./support/herald.mjs"
import { blocksOf } from "./support/markdown.mjs"
import { Proxy } from "./support/proxy.mjs"
import { withServerAndBrowser } from "./support/running.mjs"
import { mint } from "./support/token.mjs"
import { Inbox } from "./support/wait.mjs"
import { load, plain } from "./support/window.mjs"
import { pageRequests } from "./support/xhr.mjs"

const RETRIES_MS = [150, 2000, 12_000]
const POSITION = /^[\w-]{22}:\d+$/

let herald, browser
withServerAndBrowser(started => ({ herald, browser } = started))

describe("a channel recovers what it missed", { concurrency: 4 }, () => {
  for (const generation of overEachTransport(GENERATIONS).filter(generation => !STAYS_AWAY(generation))) {
    test(`${generation.label} over ${generation.transport}`, async t => {
      const page = await Page.open(t, generation)
      const room = page.room({ topic: named(t) })
      assert.deepEqual(await room.outcomes.take(), { complete: 0 })
      await publish(room, [1])
      await room.hears([1])

      await page.losesItsConnection(() => publish(room, [2, 3]))
      assert.deepEqual(await room.outcomes.take(), { complete: 2 })
      await room.hears([2, 3], { isReplaying: true })
      await publish(room, [4])
      await room.hears([4])
      assert.deepEqual(room.replayed.rest().map(({ payload }) => payload.n), [2, 3])
      assert.match(room.recovery.position, POSITION)
      assert.deepEqual([room.outcomes.rest(), room.heard.rest()], [[], []])
    })
  }
})

describe("with the latest phoenix.js", () => {
  test("params may be a function, which is called at each join", async t => {
    const page = await Page.open(t)
    let asked = 0
    const room = page.room({ topic: named(t), params: () => ({ guardian_token: token({ sub: String((asked += 1)) }) }) })
    await room.outcomes.take()
    await page.losesItsConnection(() => publish(room, [1]))
    assert.deepEqual(await room.outcomes.take(), { complete: 1 })
    await room.hears([1], { isReplaying: true })
    assert.equal(asked, 2)
  })

  test("the page's own params stay as they are, although channels share them", async t => {
    const page = await Page.open(t)
    const params = { guardian_token: token() }
    const rooms = ["a", "b"].map(name => page.room({ topic: `${named(t)}-${name}`, params }))
    for (const { outcomes } of rooms) await outcomes.take()
    await page.losesItsConnection(async () => {
      await publish(rooms[0], [1, 2])
      await publish(rooms[1], [3])
    })
    await rooms[0].hears([1, 2], { isReplaying: true })
    await rooms[1].hears([3], { isReplaying: true })
    for (const [nth, replayed] of [2, 1].entries()) assert.deepEqual(await rooms[nth].outcomes.take(), { complete: replayed })
    assert.deepEqual(Object.keys(params), ["guardian_token"])
  })

  for (const when of ["before", "after"]) {
    test(`an onMessage that the page sets ${when} the module is called, and may change payloads`, async t => {
      const page = await Page.open(t)
      const onMessage = (event, payload) => (event === "msg" ? { n: payload.n * 10 } : payload)
      const room = page.room({ topic: named(t), [when]: channel => (channel.onMessage = onMessage) })
      await room.outcomes.take()
      await page.losesItsConnection(() => publish(room, [1]))
      await room.hears([10], { isReplaying: true })
    })
  }

  test("a position that the application printed is where the first join begins", async t => {
    const topic = named(t)
    const since = (await trigger({ topic, position: true })).position
    await publish({ topic }, [1, 2])
    const room = (await Page.open(t)).room({ topic, options: { since } })
    assert.deepEqual(await room.outcomes.take(), { complete: 2 })
    await room.hears([1, 2], { isReplaying: true })
  })

  test("history asks for the newest events if there is no position", async t => {
    const topic = named(t)
    await publish({ topic }, [1, 2, 3])
    const room = (await Page.open(t)).room({ topic, options: { history: 2 } })
    assert.deepEqual(await room.outcomes.take(), { complete: 2 })
    await room.hears([2, 3], { isReplaying: true })
  })

  const hopeless = [
    { reason: "unknown", since: () => "not a position" },
    // The same position, with another last character of its epoch.
    { reason: "epoch", since: async topic => (await trigger({ topic, position: true })).position.replace(/.:/, ({ 0: last }) => `${last === "A" ? "Q" : "A"}:`) },
  ]
  for (const { reason, since } of hopeless) {
    test(`a gap that cannot be closed is reported with the reason ${reason}, and live events continue`, async t => {
      const topic = named(t)
      const options = { since: await since(topic), history: 1 }
      await publish({ topic }, [1, 2])
      const room = (await Page.open(t)).room({ topic, options })
      assert.deepEqual(await room.outcomes.take(), { incomplete: reason, replayed: 1 })
      await room.hears([2], { isReplaying: true })
      await publish(room, [3])
      await room.hears([3])
    })
  }

  test("a gap of more events than are retained is reported as expired", async t => {
    const page = await Page.open(t)
    const room = page.room({ topic: named(t) })
    await room.outcomes.take()
    const numbers = Array.from({ length: 101 }, (_, n) => n)
    await page.losesItsConnection(() => Promise.all(numbers.map(n => publish(room, [n]))))
    assert.deepEqual(await room.outcomes.take(), { incomplete: "expired", replayed: 0 })
    await publish(room, [102])
    await room.hears([102])
  })

  test("binary payloads are counted and recovered", async t => {
    const page = await Page.open(t)
    const room = page.room({ topic: named(t) })
    await room.outcomes.take()
    await page.losesItsConnection(async () => {
      await trigger({ topic: room.topic, payload: undefined, payload_base64: "AP8=" })
      await publish(room, [1])
    })
    assert.deepEqual(await room.outcomes.take(), { complete: 2 })
    const { payload, isReplaying } = await room.heard.take()
    assert.deepEqual([payload, isReplaying], [[0, 255], true])
    await room.hears([1], { isReplaying: true })
    const before = room.recovery.position
    await trigger({ topic: room.topic, payload: undefined, payload_base64: "AP8=" })
    assert.equal((await room.heard.take()).isReplaying, false)
    await publish(room, [2])
    await room.hears([2])
    assert.notEqual(room.recovery.position, before)
    assert.deepEqual(room.replayed.rest().map(({ position }) => position !== null), [false, true])
  })

  test("presence works beside it", async t => {
    const page = await Page.open(t)
    const params = { guardian_token: token({ sub: "ada" }) }
    const room = page.room({ scope: "presence", topic: named(t), params })
    const presence = new page.Presence(room.channel)
    const synced = new Inbox("presence")
    presence.onSync(() => synced.put(presence.list(key => key).join()))
    await room.outcomes.take()
    while ((await synced.take()) !== "ada");
    await page.losesItsConnection(() => publish(room, [1]))
    assert.deepEqual(await room.outcomes.take(), { complete: 1 })
    await room.hears([1], { isReplaying: true })
    while ((await synced.take()) !== "ada");
  })

  test("a stored position is where a page continues after a reload, unless it has a position of its own", async t => {
    const topic = named(t)
    const kept = new Map()
    const storage = { getItem: key => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value) }
    const first = await Page.open(t)
    const room = first.room({ topic, options: { storage } })
    await room.outcomes.take()
    await publish(room, [1])
    await room.hears([1])
    await first.close()
    const since = (await trigger({ topic, position: true, payload: { n: 2 } })).position
    await publish(room, [3])

    assert.deepEqual([...kept.keys()], [`herald:${room.channel.topic}`])
    const given = (await Page.open(t)).room({ topic, options: { storage: { ...storage, setItem() {} }, since } })
    await given.hears([3], { isReplaying: true })
    const reloaded = (await Page.open(t)).room({ topic, options: { storage } })
    assert.deepEqual(await reloaded.outcomes.take(), { complete: 2 })
    await reloaded.hears([2, 3], { isReplaying: true })
  })

  test("a storage that is forbidden does no harm", async t => {
    const forbid = () => {
      throw new Error("forbidden")
    }
    const room = (await Page.open(t)).room({ topic: named(t), options: { storage: { getItem: forbid, setItem: forbid } } })
    assert.deepEqual(await room.outcomes.take(), { complete: 0 })
    await publish(room, [1])
    await room.hears([1])
  })

  test("a channel that has already joined is refused", async t => {
    const channel = (await Page.open(t)).socket.channel("public:test-app")
    channel.join()
    assert.throws(() => recover(channel), /before channel\.join/)
  })
})

describe("on a page in Chromium", () => {
  test("with longPollFallbackMs, where WebSockets are refused", async t => {
    const proxy = await Proxy.start(herald, { upgrades: false })
    const tab = await openTab(t, proxy, { topic: named(t), socket: { longPollFallbackMs: 300 } })
    // The tab is closed first: while it polls, the proxy does not end.
    t.after(() => proxy.close())
    await tab.shows("complete 0")
    await publish({ topic: named(t) }, [1])
    await tab.shows("msg 1")
    proxy.goDown()
    await publish({ topic: named(t) }, [2, 3])
    await tab.shows("lost")
    proxy.comeBack()
    await tab.shows("complete 2")
    await tab.shows("replayed 2")
    await tab.shows("replayed 3")
  })

  test("that is reloaded between rendering and join, nothing is missing", async t => {
    const topic = named(t)
    const position = (await trigger({ topic, position: true })).position
    const tab = await openTab(t, herald, { topic, position, isHeld: true })
    await tab.isRendered()
    await publish({ topic }, [1])
    await tab.reload()
    await tab.isRendered()
    await publish({ topic }, [2])
    await tab.joins()
    await tab.shows("complete 2")
    await tab.shows("replayed 1")
    await tab.shows("replayed 2")
    await publish({ topic }, [3])
    await tab.shows("msg 3")
  })

  test("that keeps its position in sessionStorage, a reload misses nothing", async t => {
    const topic = named(t)
    const tab = await openTab(t, herald, { topic, isStored: true })
    await tab.shows("complete 0")
    await publish({ topic }, [1])
    await tab.shows("msg 1")
    await tab.leavesAndReturns(() => publish({ topic }, [2]))
    await tab.shows("complete 1")
    await tab.shows("replayed 2")
  })
})

describe("docs/history.md", async () => {
  const blocks = await blocksOf("docs/history.md")

  test("every example is run: the lines for a page by generations.test.mjs, and the module here", () => {
    assert.deepEqual(blocks.map(({ kind }) => kind), ["js page", "js module"])
  })

  test("the example of the module replays what is missing", async t => {
    const [, topic] = blocks[1].code.match(/"public:test-app:(.*?)"/)
    const event = { scope: "public", topic, position: true }
    const { position } = await trigger(event)
    await publish(event, [1])
    const tab = await openTab(t, herald, { position, lines: blocks[1].code })
    await tab.shows("complete 1")
    await tab.shows("replayed 1")
    await publish(event, [2])
    await tab.shows("live 2")
  })
})

/** The name of a channel that only this test uses. */
function named(t) {
  return t.name.replace(/\W+/g, "-").slice(0, 60)
}

function token(claims) {
  const listen = ["private:test-app:*", "presence:test-app:*"]
  return mint({ sub: "ada", listen, ...claims }, TEST_APP.secret)
}

function trigger(event) {
  const where = `/api/apps/${TEST_APP.slug}/events`
  const login = { username: TEST_APP.key, password: TEST_APP.secret }
  return herald.ask("POST", where, login, { scope: "private", event: "msg", payload: {}, ...event })
}

async function publish({ topic, scope }, numbers) {
  for (const n of numbers) await trigger({ topic, scope: scope ?? "private", payload: { n } })
}

/** A page with one generation of phoenix.js, whose connection passes a proxy. */
class Page {
  static async open(t, generation = { ...LATEST, transport: "WebSocket" }) {
    const proxy = await Proxy.start(herald)
    const { XMLHttpRequest, close } = pageRequests()
    const { Socket, LongPoll, Presence } = load(generation, { XMLHttpRequest })
    const after = tries => RETRIES_MS[Math.min(tries, RETRIES_MS.length) - 1]
    const polls = generation.transport === "long-poll" && { transport: LongPoll }
    const socket = new Socket(`ws://${proxy.host}/socket`, { ...polls, reconnectAfterMs: after, rejoinAfterMs: after })
    const page = new Page({ proxy, socket, Presence, stopRequests: close, lost: new Inbox("the loss of the connection") })
    socket.onClose(() => page.lost.put(true))
    socket.connect()
    t.after(() => page.close())
    return page
  }

  constructor(parts) {
    Object.assign(this, parts)
  }

  /** Joins a channel with the module; `before` and `after` are called with the channel before and after the module. */
  room({ topic, scope = "private", params = { guardian_token: token() }, before, after, options }) {
    const channel = this.socket.channel(`${scope}:test-app:${topic}`, params)
    const room = new Room(topic, scope, channel)
    before?.(channel)
    room.recovery = recover(channel, { ...room.callbacks(), ...options })
    after?.(channel)
    channel.on("msg", payload => room.heard.put({ payload: unpacked(payload), isReplaying: room.recovery.isReplaying }))
    channel.join()
    return room
  }

  /** Cuts the connection, and restores it when `act` has ended. */
  async losesItsConnection(act) {
    this.proxy.goDown()
    await this.lost.take()
    this.proxy.keepWaiting()
    await act()
    this.proxy.comeBack()
  }

  async close() {
    await new Promise(resolve => this.socket.disconnect(resolve))
    this.stopRequests()
    await this.proxy.close()
  }
}

/** A channel, the events that it receives, and the outcomes that the module reports. */
class Room {
  constructor(topic, scope, channel) {
    Object.assign(this, { topic, scope, channel })
    this.heard = new Inbox(`events of ${topic}`)
    this.outcomes = new Inbox(`outcomes of ${topic}`)
    this.replayed = new Inbox(`replayed events of ${topic}`)
  }

  callbacks() {
    return {
      complete: ({ replayed, position }) => this.told({ complete: replayed }, position),
      incomplete: ({ reason, replayed, position }) => this.told({ incomplete: reason, replayed }, position),
      replayed: event => this.replayed.put(event),
    }
  }

  told(outcome, position) {
    assert.match(position, POSITION)
    this.outcomes.put(outcome)
  }

  /** Takes one event for each of these numbers, in this order. */
  async hears(numbers, { isReplaying = false } = {}) {
    for (const n of numbers) assert.deepEqual(await this.heard.take(`event ${n}`), { payload: { n }, isReplaying })
  }
}

/** A payload as values of this realm; bytes as an array. */
function unpacked(payload) {
  return payload instanceof ArrayBuffer ? [...new Uint8Array(payload)] : plain(payload)
}

/** Opens a page of a server or proxy that joins with the module, and that logs what happens. */
async function openTab(t, { origin }, { position = "", lines, ...how }) {
  // Chromium does not know the address of a page that a test provides. Without this permission it would ask the user
  // before it lets such a page connect to this machine.
  const page = await browser.blank({ permissions: ["local-network-access"] })
  t.after(() => page.context().close())
  const tab = new Tab(page, `${origin}/room`)
  const head = `<meta name="herald-position" content="${position}"><link rel="icon" href="data:,">`
  const body = `<!doctype html>${head}<script type="module">${lines ?? pageLines(how)}</script>`
  await page.route("**/room", route => route.fulfill({ contentType: "text/html", body }))
  await page.route("**/elsewhere", route => route.fulfill({ contentType: "text/html", body: "<!doctype html>" }))
  await page.goto(tab.url)
  return tab
}

function pageLines({ topic, socket = {}, isHeld = false, isStored = false }) {
  const options = { ...socket, reconnectAfterMs: "RETRY" }
  return `
    import { Socket } from "/phoenix.mjs"
    import { recover } from "/herald-recovery.mjs"
    const socket = new Socket("/socket", ${JSON.stringify(options).replace('"RETRY"', "() => 150")})
    socket.onClose(() => console.log("lost"))
    socket.connect()
    const channel = socket.channel("private:test-app:${topic}", { guardian_token: "${token()}" })
    const recovery = recover(channel, {
      since: document.querySelector("meta[name=herald-position]").content,
      ${isStored ? "storage: sessionStorage," : ""}
      complete: ({ replayed }) => console.log("complete", replayed),
    })
    channel.on("msg", ({ n }) => console.log(recovery.isReplaying ? "replayed" : "msg", n))
    ${isHeld ? "await new Promise(resolve => (window.mayJoin = resolve))" : ""}
    channel.join()`
}

/** A tab of Chromium, and the lines that its page has logged. */
class Tab {
  constructor(page, url) {
    Object.assign(this, { page, url, heard: new Inbox("the console of the page") })
    page.on("console", message => message.type() === "log" && this.heard.put(message.text()))
  }

  /** Waits until the page, which is held, has done everything but join. */
  async isRendered() {
    await this.page.waitForFunction(() => window.mayJoin)
  }

  async reload() {
    await this.page.reload()
  }

  async joins() {
    await this.page.evaluate(() => window.mayJoin())
  }

  async leavesAndReturns(act) {
    await this.page.goto(this.url.replace("/room", "/elsewhere"))
    await act()
    await this.page.goto(this.url)
  }

  /**
   * Takes the next line, which must be this one. Lines that say `lost` are skipped, because a connection may be lost
   * repeatedly.
   */
  async shows(line) {
    let next
    do next = await this.heard.take(line)
    while (next === "lost" && line !== "lost")
    assert.equal(next, line)
  }
}
