import java.io.StringReader;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import org.postgresql.PGConnection;

/** What tests/real/test_postgres_drivers.py runs PostgreSQL's JDBC driver for; the argument is a URL. Prints one line for each. */
public final class Rows {
    private Rows() {}

    public static void main(String[] arguments) throws Exception {
        if (arguments.length == 0) {
            System.out.println(org.postgresql.util.DriverInfo.DRIVER_VERSION);
            return;
        }
        try (Connection connection = DriverManager.getConnection(arguments[0])) {
            try (Statement statement = connection.createStatement();
                    ResultSet who = statement.executeQuery("select current_user || '/' || current_database()")) {
                who.next();
                System.out.println("who " + who.getString(1));
            }
            int sum = 0;
            // From its fifth run on the driver prepares the statement under a name of its own.
            try (PreparedStatement add = connection.prepareStatement("select ?::int + 1")) {
                for (int number = 0; number < 8; number++) {
                    add.setInt(1, number);
                    try (ResultSet result = add.executeQuery()) {
                        result.next();
                        sum += result.getInt(1);
                    }
                }
            }
            System.out.println("sum " + sum);
            connection.setAutoCommit(false);
            try (Statement statement = connection.createStatement()) {
                statement.execute("create temporary table copied (line text)");
                statement.setFetchSize(100); // a portal that is run in pieces
                int rows = 0;
                try (ResultSet result = statement.executeQuery("select generate_series(1, 5000)")) {
                    while (result.next()) {
                        rows++;
                    }
                }
                System.out.println("rows " + rows);
            }
            long copied = connection.unwrap(PGConnection.class).getCopyAPI()
                    .copyIn("copy copied from stdin", new StringReader("line\n".repeat(20_000)));
            System.out.println("copied " + copied);
            connection.rollback();
            try (Statement statement = connection.createStatement()) {
                statement.execute("select 1/0");
            } catch (SQLException error) {
                System.out.println("failed " + error.getSQLState());
            }
        } catch (SQLException error) {
            System.err.println(error.getMessage());
            System.exit(1);
        }
    }
}
