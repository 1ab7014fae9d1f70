# The second article's helper: a JWT bound to a CSRF value, minted with Debian's ruby-jwt.
#
#   ruby guardian_helper.rb admin|visitor
#
# Prints the two meta tags' contents: the token, then the CSRF value.

require 'base64'
require 'jwt'
require 'openssl'
require 'securerandom'
require_relative 'rails'

module GuardianHelper
  ISSUER = "od-web-#{Rails.env}"
  DIGEST = OpenSSL::Digest.new('sha256')

  Human = Struct.new(:id, :full_name, :email, :crews) do
    def in_crew?(crew)
      crews.include?(crew)
    end
  end

  attr_accessor :current_human

  def guardian_token_tags
    token = Base64.urlsafe_encode64(SecureRandom.random_bytes(32))
    [jwt(token), token]
  end

  def jwt(token)
    JWT.encode(jwt_claims(token), Rails.configuration.guardian_secret, 'HS256')
  end

  def jwt_claims(token)
    {
      aud: :csrf,
      sub: jwt_sub,
      iss: ISSUER,
      iat: Time.now.utc.to_i,
      exp: (Time.now + 30.days).utc.to_i,
      s_csrf: guardian_signed_token(token),
      listen: jwt_listens,
      publish: jwt_publish,
    }
  end

  def jwt_sub
    return {} if current_human.nil?
    {
      id: current_human.id,
      name: current_human.full_name,
      email: current_human.email,
      crews: current_human.crews,
    }
  end

  def jwt_listens
    listens = ['deploys:web', 'public:*']
    listens.push('private:*') if current_human&.in_crew?(:admins)
    listens
  end

  def jwt_publish
    publish = ['public:*']
    publish.push('private:*') if current_human&.in_crew?(:admins)
    publish
  end

  def guardian_signed_token(token)
    key = Rails.configuration.guardian_secret
    signed_token = OpenSSL::HMAC.digest(DIGEST, key, token)
    Base64.urlsafe_encode64(signed_token).gsub(/={1,}$/, '')
  end
end

include GuardianHelper
self.current_human = GuardianHelper::Human.new(7, 'Ada', 'ada@example.com', [:admins]) if ARGV.first == 'admin'
puts guardian_token_tags
