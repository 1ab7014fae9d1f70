// Posts triggers with Java's own HTTP client and its default settings, several at once, and prints their outcomes.
//
// Without TLS this client offers HTTP/2 with every request: `Connection: Upgrade, HTTP2-Settings` and `Upgrade: h2c`.

import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.util.Base64;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Semaphore;

public class PostTriggers {
  public static void main(String[] words) throws InterruptedException {
    URI uri = URI.create(words[0]);
    byte[] login = words[1].getBytes(StandardCharsets.UTF_8);
    String credentials = "Basic " + Base64.getEncoder().encodeToString(login);
    int count = Integer.parseInt(words[2]);
    Semaphore free = new Semaphore(Integer.parseInt(words[3]));
    CountDownLatch left = new CountDownLatch(count);
    Map<String, Integer> outcomes = new TreeMap<>();
    HttpClient client = HttpClient.newHttpClient();

    for (int n = 0; n < count; n += 1) {
      String payload = URLEncoder.encode("{\"n\":" + n + "}", StandardCharsets.UTF_8);
      HttpRequest request = HttpRequest.newBuilder(uri)
          .header("Authorization", credentials)
          .header("Content-Type", "application/x-www-form-urlencoded")
          .POST(BodyPublishers.ofString("event=msg&scope=public&topic=load&payload=" + payload))
          .build();
      free.acquire();
      client.sendAsync(request, BodyHandlers.ofString()).whenComplete((answer, fault) -> {
        String outcome = fault == null ? String.valueOf(answer.statusCode()) : String.valueOf(fault.getMessage());
        synchronized (outcomes) {
          outcomes.merge(outcome, 1, Integer::sum);
        }
        free.release();
        left.countDown();
      });
    }
    left.await();
    outcomes.forEach((outcome, times) -> System.out.println(times + " " + outcome));
  }
}
