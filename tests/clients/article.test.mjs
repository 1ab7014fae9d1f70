// The browser code of the two articles, unchanged, against a running Herald.
//
// A few functions stand in for the frameworks that this code calls (jQuery, lodash, Angular, the meta tags), and for
// `socket.chan`, which was the name of `socket.channel` before 1.0.

import assert from "node:assert/strict"
import { execFile } from "node:child_process"
import { after, before, describe, test } from "node:test"
import vm from "node:vm"
import { GENERATIONS, LATEST, OLDEST } from "./support/generations.mjs"
import { ADMIN, Herald, TEST_APP } from "./support/herald.mjs"
import { csrfSignature, mint } from "./support/token.mjs"
import { DEADLINE_MS, Inbox } from "./support/wait.mjs"
import { browserGlobals, load, plain } from "./support/window.mjs"

describe("the first article: a Pusher clone, its Rails demo's page", () => {
  // The article's index.es6. The page of this test provides the `Socket` that it uses.
  const INDEX = `
    let guardianToken = $("meta[name=guardian-token]").attr("content")
    let csrfToken     = $("meta[name=guardian-csrf]").attr("content")

    let pusherHost    = $("meta[name=pusher_host]").attr("content")
    let pusherApp     = $("meta[name=pusher_app_id]").attr("content")
    let pusherChannel = $("meta[name=pusher_channel]").attr("content")

    let socket = new Socket(\`ws://\${pusherHost}/socket\`, {
      params: { guardian_token: guardianToken, csrf_token: csrfToken }
    })
    socket.connect()

    // Now that you are connected, you can join channels with a topic:
    let channel = socket.channel(\`public:\${pusherApp}\`, {})
    channel.join()
      .receive("ok", resp => { console.log("Joined successfully", resp) })
      .receive("error", resp => { console.log("Unable to join", resp) })

    channel.on(\`\${pusherChannel}:msg\`, data => {
      let new_line = \`<p><strong>\${data.name}<strong>: \${data.message}</p>\`
      $(".message-receiver").append(new_line)
    })

    channel.on("msg", data => {
      let new_line = \`<p><strong>Broadcast to all channels</strong>: \${data.message}</p>\`
      $(".message-receiver").append(new_line)
    })
  `

  let herald, app
  before(async () => {
    herald = await Herald.start()
    app = await herald.createApp({ name: "foo-app" })
  })
  after(() => herald?.close())

  const jwt = () => mint({ sub: {}, listen: ["public:*"] }, app.secret)
  const metas = [
    { label: "without token tags", tags: {} },
    { label: "with token tags", tags: () => ({ "guardian-token": jwt(), "guardian-csrf": "cnNm" }) },
    { label: "with the two tags swapped, as its helper writes them", tags: () => ({ "guardian-token": "cnNm", "guardian-csrf": jwt() }) },
    { label: "with a token that is not valid, on a public topic", tags: { "guardian-token": "N_YCG6hGK7" } },
  ]
  for (const generation of GENERATIONS) {
    for (const { label, tags } of metas) {
      test(`${generation.label} ${label}: joins, hears its channel and broadcasts`, async t => {
        const page = new Page(generation, {
          pusher_host: herald.host, pusher_app_id: "foo-app", pusher_channel: "foo-topic",
          ...(typeof tags === "function" ? tags() : tags),
        })
        page.run(INDEX)
        t.after(() => page.run("socket.disconnect()"))

        assert.equal(await page.logged.take("the join"), "Joined successfully {}")
        await herald.trigger({ topic: "foo-topic", payload: { name: "Rails", message: "one" } }, app)
        await herald.trigger({ topic: "#general", payload: { name: "Rails", message: "all" } }, app)

        assert.equal(await page.shown.take("the event"), "<p><strong>Rails<strong>: one</p>")
        assert.equal(await page.shown.take("the broadcast"), "<p><strong>Broadcast to all channels</strong>: all</p>")
      })
    }
  }
})

describe("the first article: an administrator with curl", () => {
  let herald
  before(async () => {
    herald = await Herald.start()
  })
  after(() => herald?.close())

  test("creates an app, whose key and secret then trigger an event", async t => {
    const url = `http://${ADMIN.username}:${ADMIN.password}@${herald.host}/api/admin/apps`
    const { data } = JSON.parse(await curl("--data", "app[name]=shiny-new-app", url))
    assert.deepEqual([data.name, data.slug, data.active], ["shiny-new-app", "shiny-new-app", true])

    const page = new Page(LATEST, {})
    page.window.host = herald.host
    page.run(`
      let socket = new Socket(\`ws://\${host}/socket\`, {})
      socket.connect()
      let channel = socket.channel("public:shiny-new-app", {})
      channel.on("shiny-new-topic:msg", data => $(".message-receiver").append(data.message))
      channel.join().receive("ok", resp => { console.log("Joined successfully", resp) })
    `)
    t.after(() => page.run("socket.disconnect()"))
    await page.logged.take("the join")
    const events = `http://${data.key}:${data.secret}@${herald.host}/api/apps/shiny-new-app/events`
    const printed = await curl("-d", "topic=shiny-new-topic", "-d", "event=msg", "-d", "scope=public",
      "--data-urlencode", `payload={"name":"curl","message":"a + b & c"}`, events)

    assert.equal(printed, "{}")
    assert.equal(await page.shown.take("the event"), "a + b & c")
  })

  function curl(...words) {
    return new Promise((resolve, reject) => {
      execFile("curl", ["--silent", "--show-error", "--fail-with-body", ...words], { timeout: DEADLINE_MS }, (error, printed, complained) => {
        if (error) reject(new Error(`curl ended with ${error.code}: ${complained}${printed}`))
        else resolve(printed)
      })
    })
  }
})

describe("the second article: Phoenix on Rails, its Angular factory", () => {
  // The article ends after `return chan;`. This test closes the brackets and connects.
  const FACTORY = `
    (function() {
    var socket = new Phoenix.Socket(wsBaseUrl + "/events");

    OC.factory('Pusher', function($document) {
      var csrfToken, guardianToken, csrfMeta, guardianMeta;

      csrfMeta = _.find($document.find('meta'), 'name', 'guardian-csrf');
      guardianMeta = _.find($document.find('meta'), 'name', 'guardian-token');

      if (csrfMeta) csrfToken = csrfMeta.content;
      if (guardianMeta) guardianToken = guardianMeta.content;

      socket.connect();

      return {
        join: function(channelName) {
          var chan = socket.chan(channelName, { guardian_token: guardianToken, csrf_token: csrfToken });
          return chan;
        },
        socket: socket
      };
    });
    })();
  `
  const CSRF = "dGhlIHBhZ2UncyBvd24gcmFuZG9tIHZhbHVl=="

  let herald
  before(async () => {
    herald = await Herald.start({ HERALD__SINGLE_APP: TEST_APP.slug })
  })
  after(() => herald?.close())

  const claims = {
    aud: "csrf",
    sub: { id: 7, name: "Ada", email: "ada@example.com", crews: ["admins"] },
    iss: "od-web-test",
    s_csrf: csrfSignature(CSRF, TEST_APP.secret),
    listen: ["deploys:web", "public:*", "private:*"],
    publish: ["public:*", "private:*"],
  }
  const admin = { "guardian-token": mint(claims, TEST_APP.secret), "guardian-csrf": CSRF }
  const anonymous = {
    "guardian-token": mint({ ...claims, sub: {}, listen: ["deploys:web", "public:*"], publish: ["public:*"] }, TEST_APP.secret),
    "guardian-csrf": CSRF,
  }
  const joins = [
    { label: "an admin joins deploys:web", tags: admin, topic: "deploys:web", reply: ["ok", { message: "Joined" }] },
    { label: "an admin joins a private topic", tags: admin, topic: "private:123", reply: ["ok", { message: "Joined" }] },
    { label: "an admin joins a public topic", tags: admin, topic: "public:lobby", reply: ["ok", {}] },
    { label: "an admin may not join what no claim lists", tags: admin, topic: "super_secret:123", reply: ["error", "authentication_required"] },
    { label: "an anonymous visitor joins deploys:web", tags: anonymous, topic: "deploys:web", reply: ["ok", { message: "Joined" }] },
    { label: "an anonymous visitor may not join a private topic", tags: anonymous, topic: "private:123", reply: ["error", "authentication_required"] },
    { label: "a page without tags joins a public topic", tags: {}, topic: "public:lobby", reply: ["ok", {}] },
    { label: "a page without tags may not join deploys:web", tags: {}, topic: "deploys:web", reply: ["error", "authentication_required"] },
    { label: "a token without its CSRF value is refused", tags: { "guardian-token": admin["guardian-token"] }, topic: "deploys:web", reply: ["error", { error: "invalid_csrf" }] },
    { label: "a token with another page's CSRF value is refused", tags: { ...admin, "guardian-csrf": "b3RoZXI=" }, topic: "deploys:web", reply: ["error", { error: "invalid_csrf" }] },
  ]
  for (const generation of [OLDEST, LATEST]) {
    for (const { label, tags, topic, reply } of joins) {
      test(`${generation.label}: ${label}`, async t => {
        const pusher = start(t, generation, tags)
        assert.deepEqual(await joined(pusher.join(topic)), reply)
      })
    }

    test(`${generation.label}: a deploy is announced with the app's secret alone`, async t => {
      const chan = start(t, generation, anonymous).join("deploys:web")
      const heard = new Inbox("deploys:web")
      chan.on("msg", message => heard.put(JSON.stringify(message)))
      await joined(chan)

      const body = JSON.stringify({ topic: "deploys:web", event: "msg", payload: { revision: "abc123" } })
      const headers = { authorization: TEST_APP.secret, "content-type": "application/json" }
      const response = await fetch(`${herald.origin}/api/publish`, { method: "POST", body, headers })

      assert.deepEqual([response.status, await response.json()], [200, {}])
      assert.equal(await heard.take(), `{"revision":"abc123"}`)
    })

    test(`${generation.label}: nobody publishes to deploys from a browser`, async t => {
      const chan = start(t, generation, admin).join("deploys:web")
      await joined(chan)
      const answers = new Inbox("push")
      chan.push("msg", { revision: "evil" }).receive("error", response => answers.put(JSON.stringify(response)))
      assert.equal(await answers.take(), "{}")
    })
  }

  function start(t, generation, tags) {
    const page = new Page(generation, tags)
    page.window.wsBaseUrl = `ws://${herald.host}`
    page.run(FACTORY)
    t.after(() => page.pusher.socket.disconnect())
    return page.pusher
  }

  function joined(chan) {
    const replies = new Inbox("join")
    chan.join()
      .receive("ok", response => replies.put(["ok", plain(response)]))
      .receive("error", response => replies.put(["error", plain(response)]))
    return replies.take()
  }
})

/** A page with meta tags, and with the functions of jQuery, lodash and Angular that the articles' code calls. */
class Page {
  constructor(generation, tags) {
    this.logged = new Inbox("the page's console")
    this.shown = new Inbox("the page's list")
    const metas = Object.entries(tags).map(([name, content]) => ({ name, content }))
    const named = selector => metas.find(meta => selector === `meta[name=${meta.name}]`)
    const Phoenix = load(generation)
    Phoenix.Socket.prototype.chan ??= Phoenix.Socket.prototype.channel
    this.window = browserGlobals({
      Phoenix,
      Socket: Phoenix.Socket,
      $: selector => ({ attr: key => named(selector)?.[key], append: line => this.shown.put(line) }),
      _: { find: (list, key, value) => list.find(item => item[key] === value) },
      OC: { factory: (_, build) => (this.pusher = build({ find: () => metas })) },
      console: { log: (words, value) => this.logged.put(`${words} ${JSON.stringify(value)}`) },
    })
  }

  run(code) {
    vm.runInContext(code, this.window)
  }
}
