# The first article's trigger: its initializer (with http, as on a laptop) and its model's `save`.
#
#   ruby pusher_event.rb NAME MESSAGE BROADCAST
#
# Prints the status and the body of the answer.

require 'json'
require 'net/http'
require_relative 'rails'

module PusherLite
  def self.uri
    key    = Rails.application.secrets.pusher_key
    secret = Rails.application.secrets.pusher_secret
    app_id = Rails.application.secrets.pusher_app_id
    url    = Rails.application.secrets.pusher_url

    uri = "http://#{key}:#{secret}@#{url}/api/apps/#{app_id}/events"
    URI.parse(uri)
  end
end

PusherEvent = Struct.new(:name, :message, :broadcast) do
  def save
    topic = if broadcast == "1"
              "#general"
            else
              Rails.application.secrets.pusher_channel
            end

    Net::HTTP.post_form(PusherLite.uri, {
      "topic" => topic,
      "event" => "msg",
      "scope" => "public",
      "payload" => {"name" => name, "message" => message}.to_json
    })
  end
end

answer = PusherEvent.new(*ARGV).save
puts answer.code, answer.body
