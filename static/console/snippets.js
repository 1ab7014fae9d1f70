// Code that connects an application to its app: for its pages, for Rails, for a terminal, and with an SDK of Pusher's.

import { el } from "./dom.js"
import { code } from "./copy.js"

const CHANNEL = "foo-topic"

// An app chooses its own secret, and an administrator pastes it with the code: no value may be read as code.

/** The text as a string of JavaScript. */
const js = text => JSON.stringify(text)

/** The text as a string of Ruby. JSON's escapes are Ruby's, too; besides, Ruby would interpolate after `#`. */
const ruby = text => JSON.stringify(text).replace(/#/g, "\\#")

/** The text as one word of a shell. */
const shell = text => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`)

/**
 * The snippets of an app. Without its secret they have the word `SECRET` in its place. On a server for a single app,
 * `session.single_app` is its slug: topics are without it there, and other apps are not served.
 */
export function snippets({ id, slug, key, pusher }, { single_app: only }, secret = null) {
  const shown = secret ?? "SECRET"
  const topic = (scope, channel) => (only === null ? `${scope}:${slug}:${channel}` : `${scope}:${channel}`)
  return el(
    "div",
    { class: "snippets" },
    part(
      "1. In the page: JavaScript",
      "Install the npm package phoenix. This subscribes to one channel.",
      code(javascript(topic), "the JavaScript code", "snippet-javascript"),
    ),
    part(
      "2. On the server: Rails",
      "This triggers an event on that channel, and mints a token for private topics (gem jwt).",
      code(rails(slug, key, shown, topic), "the Ruby code", "snippet-rails"),
    ),
    part(
      "3. Try it: a terminal",
      "The page receives this event at once.",
      code(curl(slug, key, shown), "the curl command", "snippet-curl"),
    ),
    pusher !== false &&
      part(
        "4. With an SDK of Pusher's: Node.js",
        "The npm package pusher triggers the same event. All SDKs take these five settings.",
        code(sdk(id, key, shown), "the Node.js code", "snippet-pusher"),
      ),
  )
}

function part(title, words, block) {
  return el("section", { class: "snippet" }, el("h3", {}, title), el("p", { class: "hint" }, words), block)
}

function javascript(topic) {
  const socket = `${location.origin.replace(/^http/, "ws")}/socket`
  return `import { Socket } from "phoenix"

const socket = new Socket(${js(socket)})
socket.connect()

const channel = socket.channel(${js(topic("public", CHANNEL))})
channel.on("msg", payload => console.log("received", payload))
channel.join()
  .receive("ok", () => console.log("joined"))
  .receive("error", ({ reason }) => console.log("refused", reason))`
}

function rails(slug, key, secret, topic) {
  return `require "net/http"
require "json"
require "jwt"

HERALD_KEY = ${ruby(key)}
HERALD_SECRET = ${ruby(secret)} # keep it in Rails' credentials

uri = URI(${ruby(`${location.origin}/api/apps/${slug}/events`)})
request = Net::HTTP::Post.new(uri, "Content-Type" => "application/json")
request.basic_auth(HERALD_KEY, HERALD_SECRET)
request.body = {
  topic: ${ruby(CHANNEL)}, event: "msg", payload: { message: "Hello from Rails" }
}.to_json
Net::HTTP.start(uri.host, uri.port, use_ssl: uri.scheme == "https") do |http|
  http.request(request)
end

# For a page that calls
# socket.channel(${js(topic("private", "room-1"))}, { guardian_token: token })
claims = { listen: [${ruby(topic("private", "room-1"))}], exp: 10.minutes.from_now.to_i }
token = JWT.encode(claims, HERALD_SECRET, "HS256")`
}

function sdk(id, key, secret) {
  const { hostname, port, protocol } = location
  const isSecure = protocol === "https:"
  return `import Pusher from "pusher"

const pusher = new Pusher({
  appId: ${js(String(id))},
  key: ${js(key)},
  secret: ${js(secret)},
  host: ${js(hostname)},
  port: ${js(port || (isSecure ? "443" : "80"))},
  useTLS: ${isSecure},
})
await pusher.trigger(${js(CHANNEL)}, "msg", { message: "Hello from Node.js" })`
}

function curl(slug, key, secret) {
  return `curl -u ${shell(`${key}:${secret}`)} \\
  -d ${shell(`topic=${CHANNEL}`)} -d event=msg \\
  --data-urlencode 'payload={"message":"Hello from a terminal"}' \\
  ${shell(`${location.origin}/api/apps/${slug}/events`)}`
}
