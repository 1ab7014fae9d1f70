# Reads the position of a scope with the first article's initializer, as an application does before it queries the data
# of a page.
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

uri = PusherLite.uri
request = Net::HTTP::Get.new("/api/apps/#{Rails.application.secrets.pusher_app_id}/channels/public/#{Rails.application.secrets.pusher_channel}")
request.basic_auth(uri.user, uri.password)
answer = Net::HTTP.start(uri.host, uri.port) { |http| http.request(request) }
puts JSON.parse(answer.body).fetch("data").fetch("position")
