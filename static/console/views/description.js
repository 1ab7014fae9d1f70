// A readable page of the HTTP API, made from its description at /api/openapi.json.

import { el, load } from "../dom.js"
import { get } from "../api.js"

const METHODS = ["get", "post", "put", "patch", "delete"]

export function description() {
  const place = el("div", { class: "report" }, el("p", { class: "loading" }, "Loading…"))
  load(place, find, found => (found === null ? absent() : page(found)))
  return { title: "API", node: el("div", { class: "view", data: { testid: "api" } }, el("h1", {}, "HTTP API"), place) }
}

async function find() {
  try {
    return await get("/api/openapi.json")
  } catch (error) {
    if (error.status === 404) return null
    throw error
  }
}

function absent() {
  return el(
    "p",
    { class: "empty card" },
    "This server does not serve a description of its API. The page docs/http-api.md of its source describes each call.",
  )
}

function page(found) {
  // The document names its groups in reading order.
  const groups = new Map((found.tags ?? []).map(({ name }) => [name, []]))
  for (const [path, item] of Object.entries(found.paths ?? {})) {
    for (const method of METHODS)
      if (item[method])
        group(groups, item[method], path, method, [...(item.parameters ?? []), ...(item[method].parameters ?? [])], found)
  }
  const intro = [
    el(
      "p",
      { class: "hint" },
      `${found.info?.title ?? "Herald"} ${found.info?.version ?? ""}. For programs: `,
      el("a", { href: "/api/openapi.json" }, "openapi.json"),
      ".",
    ),
    prose(found.info?.description),
  ]
  return [
    ...intro.filter(Boolean),
    ...[...groups]
      .filter(([, calls]) => calls.length > 0)
      .map(([tag, calls]) => el("section", { class: "card" }, el("h2", {}, tag), calls)),
  ]
}

function group(groups, operation, path, method, parameters, found) {
  const tag = operation.tags?.[0] ?? "Calls"
  groups.set(tag, [
    ...(groups.get(tag) ?? []),
    call(
      operation,
      path,
      method,
      parameters.map(given => resolve(given, found)),
      found,
    ),
  ])
}

function call(operation, path, method, parameters, found) {
  const body = bodySchema(resolve(operation.requestBody, found), found)
  return el(
    "details",
    { class: "call", data: { testid: "call" } },
    el(
      "summary",
      {},
      el("span", { class: "method", data: { method } }, method.toUpperCase()),
      el("code", {}, path),
      el("span", { class: "call-words" }, ...spans(operation.summary ?? "")),
    ),
    prose(operation.description),
    parameters.length > 0 && [
      el("h3", {}, "Parameters"),
      rows(
        parameters.map(({ name, in: where, required, description, schema }) => [
          name,
          `${where}${required ? ", required" : ""}`,
          kindOf(schema, found),
          description,
        ]),
      ),
    ],
    body && [
      el("h3", {}, "Body"),
      rows(
        Object.entries(body.properties ?? {}).map(([name, schema]) => [
          name,
          body.required?.includes(name) ? "required" : "",
          kindOf(schema, found),
          resolve(schema, found)?.description,
        ]),
      ),
    ],
    el("h3", {}, "Answers"),
    rows(
      Object.entries(operation.responses ?? {}).map(([status, answer]) => [status, "", "", resolve(answer, found)?.description]),
    ),
  )
}

/** The properties of a body in JSON, or else of the first content type. */
function bodySchema(body, found) {
  const content = body?.content ?? {}
  const schema = resolve((content["application/json"] ?? Object.values(content)[0])?.schema, found)
  return schema?.properties ? schema : null
}

function rows(entries) {
  return el(
    "dl",
    { class: "parameters" },
    entries
      .map(([name, note, kind, words]) => [
        el(
          "dt",
          {},
          el("code", {}, name),
          note && el("span", { class: "hint" }, ` ${note}`),
          kind && el("span", { class: "hint" }, ` ${kind}`),
        ),
        el("dd", {}, words ?? ""),
      ])
      .flat(),
  )
}

function kindOf(schema, found) {
  const known = resolve(schema, found)
  if (!known) return ""
  if (known.enum) return known.enum.join(" | ")
  if (known.type === "array") return `list of ${kindOf(known.items, found) || "values"}`
  return [known.type ?? ""].flat().join(" or ")
}

/** Follows a `$ref` within the document. */
function resolve(given, found) {
  if (typeof given?.$ref !== "string") return given
  return given.$ref
    .replace(/^#\//, "")
    .split("/")
    .reduce((place, part) => place?.[part.replaceAll("~1", "/").replaceAll("~0", "~")], found)
}

/** Paragraphs; what is between backticks is code. */
function prose(text) {
  if (!text) return null
  const paragraphs = text.split(/\n{2,}/).map(paragraph => el("p", {}, ...spans(paragraph.trim())))
  return el("div", { class: "prose" }, paragraphs)
}

function spans(text) {
  return text.split("`").map((part, nth) => (nth % 2 === 1 ? el("code", {}, part) : part))
}
