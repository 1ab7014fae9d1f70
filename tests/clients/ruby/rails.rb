# Stand-ins for the parts of Rails and ActiveSupport that the articles' code calls, with values from the environment.

module Rails
  Secrets = Struct.new(:pusher_url, :pusher_app_id, :pusher_key, :pusher_secret, :pusher_channel)
  Application = Struct.new(:secrets)
  Configuration = Struct.new(:guardian_secret)

  def self.env
    'test'
  end

  def self.application
    Application.new(Secrets.new(*%w[PUSHER_URL PUSHER_APP_ID PUSHER_KEY PUSHER_SECRET PUSHER_CHANNEL].map { |name| ENV.fetch(name, nil) }))
  end

  def self.configuration
    Configuration.new(ENV.fetch('GUARDIAN_SECRET', Rails.env))
  end
end

class Integer
  def days
    self * 24 * 60 * 60
  end
end
