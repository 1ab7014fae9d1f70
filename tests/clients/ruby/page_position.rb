# What an application does before it queries the data of a page: an event, with the first article's initializer, whose answer
# tells a position.
#
#   ruby page_position.rb
#
# Prints the position, as the page would contain it.

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

answer = Net::HTTP.post_form(PusherLite.uri, {
  "topic" => Rails.application.secrets.pusher_channel,
  "event" => "rendered",
  "scope" => "public",
  "position" => "true"
})
puts JSON.parse(answer.body).fetch("position")
