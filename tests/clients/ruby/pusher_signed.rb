# Signs calls as the gem `pusher` does, with nothing but Ruby's own library: prints the status and the body of each answer.

require "cgi"
require "digest/md5"
require "json"
require "net/http"
require "openssl"

HOST, PORT = ENV.fetch("PUSHER_URL").split(":")
APP = "/apps/#{ENV.fetch("PUSHER_APP_ID")}"

# The gem signs the query before it escapes it. The names are in lower case and sorted, and lists are written
# `k[]=a&k[]=b`.
def call(verb, path, params: {}, body: nil, secret: ENV.fetch("PUSHER_SECRET"))
  params = params.merge("auth_key" => ENV.fetch("PUSHER_KEY"), "auth_timestamp" => Time.now.to_i.to_s, "auth_version" => "1.0")
  params["body_md5"] = Digest::MD5.hexdigest(body) if body
  pairs = params.sort.flat_map { |name, value| value.is_a?(Array) ? value.map { |each| ["#{name}[]", each] } : [[name, value]] }
  signed = [verb, path, pairs.map { |pair| pair.join("=") }.join("&")].join("\n")
  pairs << ["auth_signature", OpenSSL::HMAC.hexdigest(OpenSSL::Digest.new("SHA256"), secret, signed)]
  query = pairs.map { |name, value| "#{CGI.escape(name)}=#{CGI.escape(value)}" }.join("&")
  request = Net::HTTP.const_get(verb.capitalize).new("#{path}?#{query}", "Content-Type" => "application/json")
  request.body = body if body
  response = Net::HTTP.start(HOST, PORT.to_i) { |http| http.request(request) }
  puts response.code, response.body.strip
end

event = { name: "msg", channels: ["room"], data: { message: "Grüße aus Ruby" }.to_json }
call("POST", "#{APP}/events", body: event.to_json)
call("POST", "#{APP}/batch_events", body: { batch: [{ name: "msg", channel: "room", data: "{}", info: "subscription_count" }] }.to_json)
call("GET", "#{APP}/channels", params: { "filter_by_prefix" => "presence-", "info" => "user_count,subscription_count" })
call("GET", "#{APP}/channels/room", params: { "info" => "subscription_count" })
call("GET", "#{APP}/channels/presence-team/users")
call("GET", "#{APP}/channels", params: { "channels" => %w[b a] })
call("POST", "#{APP}/events", body: event.to_json, secret: "wrong")
