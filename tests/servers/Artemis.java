/** ActiveMQ Artemis as configured by the file at the URL given, until it is killed. */
public class Artemis {
    public static void main(String[] arguments) throws Exception {
        var server = new org.apache.activemq.artemis.core.server.embedded.EmbeddedActiveMQ();
        server.setConfigResourcePath(arguments[0]).start();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                server.stop();
            } catch (Exception e) {
                e.printStackTrace();
            }
        }));
    }
}
